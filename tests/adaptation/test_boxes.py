"""kora adapt for images with boxes: from a folder to a model, a sentence and a page."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kora.adaptation import boxes as module
from kora.adaptation.adapt import adapt
from kora.adaptation.boxes import BOXES
from kora.adaptation.candidates import Candidate
from kora.adaptation.layout import has_boxes
from kora.adaptation.result import AdaptedBoxes
from kora.analysis.pooled import SCORES
from kora.runs.outcomes import read_outcomes
from kora.runs.results import read_results
from kora.training.batched_fit import Setting
from tests.support.cli import kora
from tests.support.detection import WRITERS, objects, write_coco, write_images, write_yolo

SMALL: dict[str, Any] = {
    "head": {"class_path": "kora.heads.FCOSHead", "init_args": {"channels": 32}}
}


def shortened(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The first of them, with one setting."""
    return [candidates[0]._replace(settings=(Setting(1e-2, 1e-2),))]


@pytest.fixture(scope="module", autouse=True)
def _short_fits() -> Iterator[None]:
    short = replace(
        BOXES, cached=shortened(BOXES.cached), on_images=shortened(BOXES.on_images), model=SMALL,
        steps=(10, 10),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(module, "BOXES", short)
        yield


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("boxes")
    write_yolo(place / "photos", objects(25))
    return place


@pytest.fixture(scope="module")
def result(work: Path) -> AdaptedBoxes:
    found = adapt(work / "photos", out=work / "out", backbone="vit_nano", minutes=500)
    assert isinstance(found, AdaptedBoxes)
    return found


@pytest.mark.runs
def test_the_best_by_validation_is_tested_once_beside_the_linear_probe(
    result: AdaptedBoxes,
) -> None:
    trials = [read_results(p.parent) for p in result.folder.parent.glob("out_trials/*/*/*/r*.json")]
    assert {run.strategy for run in trials} == {"LinearProbe", BOXES.on_images[0].name}
    assert not any(key.startswith("test/") for run in trials for key in run.metrics)
    best = max(trials, key=lambda run: run.metrics["best_val/map"])
    assert result.strategy == best.strategy
    tested = [read_results(p.parent) for p in result.folder.glob("*/seed0/*/results.json")]
    assert {run.strategy for run in tested} == {best.strategy, "LinearProbe"}
    outcomes = read_outcomes(result.run)
    assert outcomes is not None
    assert outcomes.boxes is not None
    assert result.map == pytest.approx(SCORES["map"].value(outcomes.boxes))
    assert result.map == pytest.approx(read_results(result.run).metrics["test/map"], abs=1e-6)
    assert result.interval[0] <= result.map <= result.interval[1]


@pytest.mark.runs
def test_the_sentence_and_the_page_have_the_answer(result: AdaptedBoxes) -> None:
    share = r"[\d.]+ %"
    assert re.match(
        rf"{re.escape(result.strategy)} finds objects of 2 classes with a mean average precision "
        rf"of {share} on 5 test images \(95 % interval {share} to {share}; the usual boxes of each "
        rf"class {share}",
        result.sentence,
    )
    page = result.page.read_text(encoding="utf-8")
    assert result.sentence in page.replace("&#39;", "'")
    assert page.count("data:image/png;base64,") == 2
    assert "Training boxes: cat " in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)


@pytest.mark.runs
def test_the_split_that_was_used_is_kept_as_a_table(result: AdaptedBoxes) -> None:
    rows = list(csv.DictReader((result.folder / "split.csv").open()))
    sizes = read_results(result.run).protocol["sizes"]
    assert {part: sum(row["part"] == part for row in rows) for part in sizes} == sizes
    assert sizes == {"train": 16, "val": 4, "test": 5}
    assert sorted(row["path"] for row in rows) == sorted(f"{name}.png" for name in objects(25))


@pytest.mark.runs
def test_the_model_finds_boxes_in_the_pixels_of_a_picture(result: AdaptedBoxes) -> None:
    assert result.model.backbone.size == (48, 80)  # 24 x 40, in whole patches of 8
    picture = np.full((240, 400, 3), 128, np.uint8)
    picture[20:130, 40:140] = (250, 10, 10)
    found = result.model.detect(picture)
    assert found
    assert max(one.box[2] for one in found) > 80, "beyond the width of the backbone"
    assert all(0 <= one.box[0] < one.box[2] <= 400 for one in found)


@pytest.mark.runs
def test_of_changed_images_no_result_is_used_again(
    result: AdaptedBoxes, work: Path, tmp_path: Path
) -> None:
    shutil.copytree(work / "photos", tmp_path / "photos")
    shutil.copytree(work / "out", tmp_path / "out")
    (label,) = (tmp_path / "photos").rglob("p3.txt")
    label.write_text(label.read_text() + "0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(ValueError, match=r"have changed since .*out.*--out"):
        adapt(tmp_path / "photos", out=tmp_path / "out", backbone="vit_nano", minutes=500)


@pytest.mark.runs
def test_called_again_it_runs_nothing(
    result: AdaptedBoxes, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kora.grid.run.run_child", lambda *a, **o: pytest.fail("a run began"))
    again = adapt(work / "photos", out=work / "out", backbone="vit_nano", minutes=500)
    assert again is not None
    assert (again.run, again.sentence) == (result.run, result.sentence)


@pytest.mark.runs
def test_a_dry_run_says_what_was_found_and_what_would_be_tried(
    work: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = kora(capfd, "adapt", work / "photos", "--out", work / "dry", "--backbone", "vit_nano",
                "--dry-run", "--minutes", "9")  # fmt: skip
    assert said.code == 0, said.err
    for words in (
        "boxes in YOLO txt.", "Audit of the boxes", "small", "Boxes of each class",
        "16 images to train, 4 to validate, 5 to test (drawn here)",
        "LinearProbe (a pyramid and FCOS on the frozen tokens), 1 fits: ",
        "LoRA (LoRA under the same head)", "a fit, as the minutes allow",
    ):  # fmt: skip
        assert words in said.out
    assert "is less than" not in said.out
    few = kora(capfd, "adapt", work / "photos", "--out", work / "dry", "--backbone", "vit_nano",
               "--dry-run", "--minutes", "0.01")  # fmt: skip
    assert "--minutes 0.01 is less than the strategies on cached features take: " in few.out
    assert "a fit, not within the minutes" in few.out
    assert not list((work / "dry").glob("*/seed0"))


@pytest.mark.parametrize("form", WRITERS)
def test_boxes_are_found_in_each_layout(form: str, tmp_path: Path) -> None:
    WRITERS[form](tmp_path / "photos", objects(3))
    assert has_boxes(tmp_path / "photos")


def test_pictures_without_boxes_are_no_such_folder(tmp_path: Path) -> None:
    write_images(tmp_path / "photos/cat", objects(2))
    write_images(tmp_path / "photos/dog", objects(2))
    assert not has_boxes(tmp_path / "photos")
    (tmp_path / "photos/cat/p0.xml").write_text("<annotation/>")  # beside a picture of a class
    assert not has_boxes(tmp_path / "photos")
    assert not has_boxes(tmp_path / "none")


@pytest.mark.parametrize("parts", [("train", "valid", "test"), ("Train", "Valid", "Test")])
def test_a_part_of_the_folder_validates_if_another_one_tests(
    parts: tuple[str, str, str], tmp_path: Path
) -> None:
    for part in parts:
        write_coco(tmp_path / part, objects(3, prefix=part))
    assert has_boxes(tmp_path)
    assert BOXES.options(tmp_path) == {"val_dir": parts[1]}
    assert BOXES.images(tmp_path).parent.name in parts[:2]
    shutil.rmtree(tmp_path / parts[2])
    assert BOXES.options(tmp_path) == {}
