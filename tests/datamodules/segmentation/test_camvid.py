"""Claims about CamVid: no drive is on both sides, and the official split says what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datamodules import CamVid
from tests.support.segmentation import write_pairs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    drives = {
        "train": ["0001TP_1", "0001TP_2", "0006R0_1", "0006R0_2", "0016E5_1", "0016E5_2"],
        "val": ["0016E5_3"],
        "test": ["0001TP_3", "Seq05VD_1", "Seq05VD_2"],
    }
    for part, names in drives.items():
        write_pairs(tmp_path / part, names)
    return tmp_path


def drives_of(root: Path, **options: Any) -> dict[str, list[str]]:
    data = CamVid(str(root), image_size=16, num_workers=0, seed=0, **options)
    data.setup_splits()
    names = {"train": data.group_names("train"), "val": data.group_names("train")}
    names["test"] = data.group_names("test")
    return {split: [names[split][i] for i in data.indices(split)] for split in names}


def test_by_drive_the_drive_that_validates_does_not_train(root: Path) -> None:
    found = drives_of(root)
    assert found["val"] == ["0006R0", "0006R0"]
    assert sorted(found["train"]) == ["0001TP"] * 2 + ["0016E5"] * 3
    assert found["test"] == ["0001TP", "Seq05VD", "Seq05VD"]


def test_the_official_split_validates_within_a_drive_that_trains(root: Path) -> None:
    found = drives_of(root, split="official")
    assert found["val"] == ["0016E5"]
    assert "0016E5" in found["train"]


def test_an_unknown_drive_is_refused_with_those_that_are_there(root: Path) -> None:
    with pytest.raises(ValueError, match="0001TP, 0006R0, 0016E5"):
        drives_of(root, val_drive="0007")
