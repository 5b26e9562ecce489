"""Claims about the data of a finished run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datamodules import Synthetic
from kora.inspect.data import image_batches, run_data, run_datamodule, spread, training_batch
from tests.support.cli import tiny_config, write_config


def test_places_are_spread_over_all_and_each_once() -> None:
    assert spread(10, 4).tolist() == [0, 3, 6, 9]
    assert spread(3, 10).tolist() == [0, 1, 2]
    assert spread(0, 10).tolist() == []
    assert len(np.unique(spread(5000, 256))) == 256


def test_batches_hold_these_images_in_order() -> None:
    data = Synthetic(image_size=32, train_images=48, test_images=24, val_images=12)
    data.setup_splits()
    batches = list(image_batches(data, "test", spread(24, 10), size=4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert batches[-1][-1].equal(data.images("test", [23])[0])
    batch = training_batch(data, 5)
    assert batch["label"].tolist() == [int(data.labels("train")[place]) for place in spread(36, 5)]
    assert batch["image"].shape == (5, 3, 32, 32)


def test_the_splits_are_those_of_the_runs_seed(tmp_path: Path) -> None:
    for seed in (0, 3):
        write_config(tmp_path / "config.yaml", tiny_config(seed_everything=seed))
        data, _ = run_data(tmp_path)
        assert data.resolved_seed() == seed


@pytest.mark.parametrize("read", [run_datamodule, run_data])
def test_data_that_have_moved_are_named_with_the_file_to_correct(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    table = tmp_path / "before" / "photos.csv"
    data = {"class_path": "datamodules.ImageTable", "init_args": {"table": str(table)}}
    config = tmp_path / "config.yaml"
    write_config(config, tiny_config(data=data))
    with pytest.raises(FileNotFoundError) as caught:
        read(tmp_path)
    assert str(table) in str(caught.value)
    assert f"{config} names it: if the data have moved, correct data there" in str(caught.value)


def test_a_record_of_other_splits_is_refused_and_a_damaged_one_told(tmp_path: Path) -> None:
    write_config(tmp_path / "config.yaml", tiny_config())
    data, _ = run_data(tmp_path)
    path = data.save_splits(tmp_path)
    run_data(tmp_path)
    record = json.loads(path.read_text())
    record["protocol"]["sha256"]["val"] = "0"
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"not that of the run: .*splits\.json"):
        run_data(tmp_path)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(RuntimeError, match=r"splits\.json is damaged") as caught:
        run_data(tmp_path)
    assert len(str(caught.value)) < 300 + len(str(path))
    path.write_text("{")
    with pytest.raises(RuntimeError, match=r"splits\.json is damaged"):
        run_data(tmp_path)
