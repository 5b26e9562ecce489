"""Tiny depth data sets written in the real on-disk formats, from seeded numbers.

Every frame is a slanted wall with a box before it; near surfaces are bright, so that a model can
learn depth from a handful of frames. Frame i differs from every other frame.

Shapes: N frames, H height, W width
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
from numpy.typing import NDArray

__all__ = ["depth_frame", "write_frame", "write_frame_folders", "write_labelled", "write_splits"]

SIZE = (24, 32)
_USER_BLOCK = 512  # bytes of text that MATLAB puts before the HDF5 part


def depth_frame(
    number: int, *, size: tuple[int, int] = SIZE
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Image uint8 (3, H, W) and depth float32 (H, W) in metres, 0.7 to 9.8, of one frame."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]] / np.array(size).reshape(2, 1, 1)
    depth = rng.uniform(2, 6) + rng.uniform(-1, 1) * rows + rng.uniform(-2, 2) * columns
    top, left = rng.uniform(0.1, 0.5, 2)
    box = (rows > top) & (rows < top + 0.4) & (columns > left) & (columns < left + 0.4)
    depth[box] = rng.uniform(0.7, 1.5)
    depth = np.clip(depth, 0.7, 9.8)
    shade = 230 - 22 * depth
    tint = rng.uniform(0.7, 1.0, (3, 1, 1))
    noise = rng.integers(-3, 4, (3, *size))
    image = np.clip(shade[None] * tint + noise, 0, 255).astype(np.uint8)
    return image, depth.astype(np.float32)


def write_labelled(
    path: Path,
    *,
    frames: int = 12,
    size: tuple[int, int] = SIZE,
    scenes: Sequence[str] | None = None,
    change: dict[str, Any] | None = None,
) -> Path:
    """A labelled file as MATLAB v7.3 writes it; returns its path.

    Args:
        path: the file to write.
        frames: how many.
        size: height and width of an upright frame.
        scenes: scene of each frame; None: two frames a scene.
        change: arrays to write instead of the right ones, by key; None leaves one out.
    """
    scenes = scenes or [f"kitchen_{number // 2:04d}" for number in range(frames)]
    height, width = size
    images = np.empty((frames, 3, width, height), dtype=np.uint8)
    depths = np.empty((frames, width, height), dtype=np.float32)
    for number in range(frames):
        image, depth = depth_frame(number, size=size)
        images[number] = image.transpose(0, 2, 1)
        depths[number] = depth.T
    raw = depths.copy()
    raw[:, : max(1, width // 16)] = 0  # the sensor misses a strip at the border
    arrays: dict[str, Any] = {"images": images, "depths": depths, "rawDepths": raw}
    arrays["labels"] = np.zeros(depths.shape, dtype=np.uint16)
    arrays |= change or {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=_USER_BLOCK) as file:
        for key, array in arrays.items():
            if array is not None:
                chunks = (1, *array.shape[1:])
                file.create_dataset(key, data=array, chunks=chunks, compression=3)
        if arrays.get("scenes", scenes) is scenes:
            _write_cell(file, "scenes", scenes)
    with path.open("r+b") as raw_file:
        text = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, HDF5 schema 1.00 ."
        raw_file.write(text.ljust(124) + b"\x00\x02IM")
    return path


def write_splits(
    path: Path,
    *,
    train: Sequence[int] = range(1, 9),
    test: Sequence[int] = range(9, 13),
    names: tuple[str, str] = ("trainNdxs", "testNdxs"),
) -> Path:
    """A `splits.mat` in MATLAB's old format, frames counted from 1; returns its path."""
    columns = [np.array(list(part)).reshape(-1, 1) for part in (train, test)]
    held = {
        name: c.astype(np.uint16 if len(c) and c.min() >= 0 else np.int32)
        for name, c in zip(names, columns, strict=True)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, held, do_compression=True)
    return path


def write_frame(path: Path, *, change: dict[str, Any] | None = None, number: int = 0) -> Path:
    """One frame as an HDF5 file with `rgb` (3, H, W) and `depth` (H, W); returns its path."""
    image, depth = depth_frame(number)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, array in ({"rgb": image, "depth": depth} | (change or {})).items():
            if array is not None:
                file.create_dataset(key, data=array)
    return path


def write_frame_folders(
    root: Path, *, train: dict[str, int] | None = None, val: dict[str, int] | None = None
) -> Path:
    """The layout `{train,val}/<scene>/<n>.h5`, with so many frames of each scene; returns `root`.

    Frames are numbered through: training scenes first, each part in sorted order.
    """
    parts = {
        "train": train or {"bedroom_0001": 4, "cafe_0001a": 3, "den_0002": 5},
        "val": val or {"official": 4},
    }
    number = 0
    for part, scenes in parts.items():
        for scene in sorted(scenes):
            for place in range(scenes[scene]):
                write_frame(root / part / scene / f"{place + 1:05d}.h5", number=number)
                number += 1
    return root


def _write_cell(file: Any, key: str, texts: Sequence[str]) -> None:
    """A MATLAB cell array of strings: (1, N) references to arrays of character codes."""
    cell = file.create_dataset(key, (1, len(texts)), dtype=h5py.ref_dtype)
    cell.attrs["MATLAB_class"] = np.bytes_("cell")
    for place, text in enumerate(texts):
        codes = np.array([[ord(letter)] for letter in text], dtype=np.uint16)
        target = file.create_dataset(f"#refs#/{key}{place}", data=codes)
        target.attrs["MATLAB_class"] = np.bytes_("char")
        cell[0, place] = target.ref
