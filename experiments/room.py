"""Frames of one room, as 7-Scenes has them, in the per-frame layout of `datamodules.NYUDepthV2`.

    python -m experiments.room rgbd_room.zip data/rgbd_room

Frames follow each other in time, so they are split by time: the first 70 % train, in four stretches
(one of which validates), and the last 25 % test. What lies between is left out.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

__all__ = ["convert"]

_STRETCHES = 4


def convert(archive: Path, out: Path) -> dict[str, int]:
    """Write `train/room_0001` to `train/room_0004` and `val/room_0005`; returns frames by part.

    Depth of 0 or 65,535 millimetres was not measured.

    Raises:
        FileExistsError: `out` exists.
    """
    out.mkdir(parents=True)
    counts = {"train": 0, "val": 0}
    with zipfile.ZipFile(archive) as file:
        names = sorted(name for name in file.namelist() if name.endswith(".color.jpg"))
        train, test = len(names) * 70 // 100, len(names) * 75 // 100
        for number, name in enumerate(names):
            if train <= number < test:
                continue
            part = "train" if number < train else "val"
            stretch = number * _STRETCHES // train if number < train else _STRETCHES
            rgb = np.asarray(Image.open(io.BytesIO(file.read(name))).convert("RGB"))
            depth = file.read(name.replace(".color.jpg", ".depth.png"))
            millimetres = np.asarray(Image.open(io.BytesIO(depth))).astype(np.float32)
            folder = out / part / f"room_{stretch + 1:04d}"
            folder.mkdir(parents=True, exist_ok=True)
            with h5py.File(folder / f"{number:05d}.h5", "w") as frame:
                frame["rgb"] = rgb.transpose(2, 0, 1)
                frame["depth"] = np.where(millimetres == 65535, 0, millimetres / 1000)
            counts[part] += 1
    return counts


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert, and say how many frames each part has."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path, help="a zip of FRAME.color.jpg and FRAME.depth.png")
    parser.add_argument("out", type=Path, help="a new folder")
    asked = parser.parse_args(arguments)
    print(convert(asked.archive, asked.out))


if __name__ == "__main__":
    main()
