"""What a run said of each test image is kept small, whole and in order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kora.runs.durable import DamagedFileError
from kora.runs.outcomes import OUTCOMES_NAME, Outcomes, collect, read_outcomes, write_outcomes
from tests.support.saved_files import outcomes

INDEX = np.array([3, 1, 2])
BATCH = {"index": INDEX, "label": np.array([0, 1, 2]), "prediction": np.array([0, 1, 0])}


def test_batches_become_one_table_in_the_order_of_the_images() -> None:
    found = collect([BATCH, {k: v[:1] for k, v in BATCH.items()}])  # image 3 came twice
    assert found is not None
    assert found.index.tolist() == [1, 2, 3]
    assert found.columns["prediction"].tolist() == [1, 0, 0]
    assert np.array_equal(found.values("test/accuracy"), [1, 0, 1])


@pytest.mark.parametrize("batches", [[], [{"label": INDEX}], [{"index": -INDEX}]])
def test_without_an_index_there_is_nothing_to_keep(batches: list[dict[str, np.ndarray]]) -> None:
    assert collect(batches) is None


def test_what_was_written_is_read_in_the_smallest_types(tmp_path: Path) -> None:
    path = write_outcomes(tmp_path, outcomes())
    found = read_outcomes(tmp_path)
    assert found is not None
    assert [found.index.dtype, found.columns["label"].dtype] == [np.uint16, np.uint8]
    assert np.array_equal(found.columns["prediction"], outcomes().columns["prediction"])
    assert path.stat().st_size < 41_000  # 4 bytes an image
    write_outcomes(tmp_path, outcomes(classes=1000))
    assert load_file(path)["label"].dtype == np.uint16


def test_metrics_that_are_no_mean_over_images_have_no_outcomes() -> None:
    found = outcomes()
    for metric in ("test/macro_f1", "val/accuracy", "test/label", "test/prediction"):
        assert found.values(metric) is None
    depth = Outcomes(INDEX, {"rmse_m": np.array([0.5, 1, 2]), "pixels": np.array([4, 4, 4])})
    assert np.array_equal(depth.values("test/rmse_m"), [0.5, 1, 2])
    assert depth.values("test/accuracy") is None
    assert depth.values("test/pixels") is None


BOXES = {
    "box_score": np.array([[0.9, 0.2]] * 3, dtype=np.float32),
    "box_class": np.array([[1, 0]] * 3),
    "box_hits": np.array([[1023, 1]] * 3),
    "box_ignored": np.array([[0, 1022]] * 3),
    "box_true": np.array([[1, 0, 2]] * 3),
}


def test_boxes_are_read_as_written(tmp_path: Path) -> None:
    write_outcomes(tmp_path, Outcomes(INDEX, BOXES))
    found = read_outcomes(tmp_path)
    assert found is not None
    assert (found.columns["box_hits"].dtype, found.areas) == (np.uint16, None)
    assert found.boxes is not None
    assert len(found.boxes) == 3
    boxes = found.boxes
    kept = (boxes.score, boxes.classes, boxes.hits, boxes.ignored, boxes.true)
    assert all(np.array_equal(*two) for two in zip(kept, BOXES.values(), strict=True))
    assert all(found.values(f"test/{name}") is None for name in ("map", *BOXES))
    assert outcomes().boxes is None


@pytest.mark.parametrize("name", list(BOXES))
def test_boxes_of_which_something_lacks_are_told(name: str, tmp_path: Path) -> None:
    path = tmp_path / OUTCOMES_NAME
    without = {other: column for other, column in BOXES.items() if other != name}
    fewer = {**BOXES, name: np.ascontiguousarray(BOXES[name][:, 0])}
    for columns in (without, fewer):
        save_file({"index": INDEX, **columns}, path, {"kora_outcomes": "1"})
        with pytest.raises(DamagedFileError, match="columns do not belong together"):
            read_outcomes(tmp_path)


def test_a_run_that_left_none_has_none(tmp_path: Path) -> None:
    assert read_outcomes(tmp_path) is None


def test_a_file_that_is_cut_short_is_damaged(tmp_path: Path) -> None:
    path = write_outcomes(tmp_path, outcomes(100))
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(DamagedFileError, match=rf"{OUTCOMES_NAME} is damaged.*SHA-256"):
        read_outcomes(tmp_path)
    path.with_name(f"{OUTCOMES_NAME}.sha256").unlink()
    with pytest.raises(DamagedFileError, match="is damaged: not readable"):
        read_outcomes(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(DamagedFileError, match="is damaged: not readable"):
        read_outcomes(tmp_path)


def test_another_version_or_uneven_columns_are_told(tmp_path: Path) -> None:
    path = tmp_path / OUTCOMES_NAME
    save_file({"index": INDEX, "label": INDEX}, path, {"kora_outcomes": "9"})
    with pytest.raises(ValueError, match=r"version is '9'.*reads '1'.*kora test"):
        read_outcomes(tmp_path)
    both = {"label": INDEX, "prediction": INDEX}
    for columns in (both | {"label": INDEX[:2]}, {"label": INDEX}, {"prediction": INDEX}, {}):
        save_file({"index": INDEX, **columns}, path, {"kora_outcomes": "1"})
        with pytest.raises(DamagedFileError, match="columns do not belong together"):
            read_outcomes(tmp_path)


@pytest.mark.parametrize("answer", [[1 << 40], [-1], [0.5]])
def test_answers_that_are_no_classes_are_damage(answer: list[float], tmp_path: Path) -> None:
    columns = {
        "index": np.arange(1),
        "label": np.zeros(1, np.uint8),
        "prediction": np.array(answer),
    }
    save_file(columns, tmp_path / OUTCOMES_NAME, {"kora_outcomes": "1"})
    with pytest.raises(DamagedFileError, match="do not belong together"):
        read_outcomes(tmp_path)
