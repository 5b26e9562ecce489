"""Frames of one room become train and val of the per-frame layout, split by time."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from experiments.room import convert, main

FRAMES = 40


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "room.zip"
    with zipfile.ZipFile(path, "w") as file:
        for number in range(FRAMES):
            color, depth = io.BytesIO(), io.BytesIO()
            Image.fromarray(np.full((4, 6, 3), number, np.uint8)).save(color, "JPEG")
            millimetres = np.full((4, 6), 1000 + number, np.uint16)
            millimetres[0, :2] = 0, 65535
            Image.fromarray(millimetres).save(depth, "PNG")
            file.writestr(f"room/{number:03d}.color.jpg", color.getvalue())
            file.writestr(f"room/{number:03d}.depth.png", depth.getvalue())
    return path


def test_the_first_frames_train_in_four_stretches_and_the_last_quarter_tests(
    archive: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert convert(archive, out) == {"train": 28, "val": 10}
    found = {path.name: len(list(path.iterdir())) for path in sorted(out.glob("*/room_*"))}
    assert found == {**{f"room_000{number}": 7 for number in (1, 2, 3, 4)}, "room_0005": 10}
    assert min(path.stem for path in (out / "val/room_0005").iterdir()) == "00030"


def test_depth_is_in_metres_and_zero_where_it_was_not_measured(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(archive), str(tmp_path / "out")])
    assert capsys.readouterr().out == "{'train': 28, 'val': 10}\n"
    with h5py.File(tmp_path / "out/train/room_0001/00003.h5") as frame:
        assert frame["rgb"].shape == (3, 4, 6)
        depth = frame["depth"][:]
    assert depth[0, :2].tolist() == [0, 0]
    assert depth[1, 1] == pytest.approx(1.003)


def test_a_folder_that_is_there_is_not_written_into(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        convert(archive, tmp_path)
