"""A compact copy of the labelled file that is mapped into memory: images upright, depth in 16 bits.

The file itself is compressed and turned on its side: to undo that takes much longer than to read.
The copy is a cache (datamodules/cache/rows.py) with a row for each frame.

Shapes: N frames of the file, B frames read at once, H height, W width
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from datamodules.cache.rows import Block, RowCache, alone, new_folder
from datamodules.nyu.labelled import LabelledFile
from datamodules.recipe import UnreadableImageError
from datamodules.splits import IntArray

__all__ = ["STEP_M", "CachedFrames", "open_cache", "write_cache"]

#: 0.2 mm: 16 bits then reach 13.1 m, and the sensor's own steps are 1.5 mm at best.
STEP_M = 0.0002
_STEPS_PER_M = np.float32(5000)
_BLOCK = 16  # frames converted at once


class CachedFrames(RowCache):
    """Frames of the labelled file, in a folder; see `open_cache`."""

    def __init__(self, folder: Path, source: LabelledFile) -> None:
        stat = source.path.stat()
        of = {
            "bytes": stat.st_size,
            "modified_ns": stat.st_mtime_ns,
            "depth": source.depth,
            "step_m": STEP_M,
        }
        arrays = {
            "images": ((source.frames, 3, *source.size), np.uint8),
            "depth": ((source.frames, *source.size), np.uint16),
        }
        super().__init__(folder, of, arrays)
        self.size = source.size

    def read(self, frames: IntArray) -> dict[str, Tensor]:
        """These frames, counted from 0: `image` uint8 (B, 3, H, W), `depth_m` float32 (B, H, W).

        Raises:
            UnreadableImageError: the cache is not what it was when it was made or opened.
        """
        maps = self.maps()
        image = torch.empty((len(frames), 3, *self.size), dtype=torch.uint8)
        depth = torch.empty((len(frames), *self.size), dtype=torch.float32)
        image_BCHW, depth_BHW = image.numpy(), depth.numpy()
        for row in np.argsort(frames, kind="stable"):
            frame = int(frames[row])
            one = {name: array[frame : frame + 1] for name, array in maps.items()}
            for _, name in self.damaged(frames[row : row + 1], one):
                raise UnreadableImageError(
                    f"{self.folder / name}.npy is damaged: frame {frame} does not have the "
                    "checksum with which it was written. Run `kora data prepare --config ...` to "
                    "make the cache again."
                )
            image_BCHW[row] = one["images"][0]
            np.multiply(one["depth"][0], np.float32(STEP_M), out=depth_BHW[row])
        return {"image": image, "depth_m": depth}


def open_cache(folder: Path, source: LabelledFile) -> CachedFrames | None:
    """The cache in `folder` if there is one that was made from `source` as it is now.

    Warns:
        UserWarning: there is one, but it was made from another file, or it is damaged.
    """
    if not folder.is_dir():
        return None
    try:
        frames = CachedFrames(folder, source).load()
        if not frames.ready.all():
            raise ValueError("rows.npy is damaged")
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        warnings.warn(
            f"The cache {folder} is not used, because it does not match {source.path}: {reason}. "
            "Run `kora data prepare --config ...` to make it again.",
            stacklevel=2,
        )
        return None
    return frames


def write_cache(folder: Path, source: LabelledFile) -> str:
    """Make the cache of `source` in `folder`, unless a matching one is there; one sentence on it.

    Every frame is checked on the way. The folder appears when it is complete.

    Raises:
        UnreadableImageError: a frame is damaged.
        ValueError: a depth does not fit into 16 bits.
        OSError: no room on the disk.
    """
    with alone(folder):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a stale cache is about to be replaced
            frames = open_cache(folder, source)
        if frames is None or len(frames.drop_damaged()):
            with new_folder(folder) as staging:
                frames = CachedFrames(staging, source)
                _convert(source, frames)
    size = sum((folder / f"{name}.npy").stat().st_size for name in frames.arrays)
    return (
        f"{source.frames:,} frames are in {folder} ({size / 2**20:.4g} MiB), "
        f"their depth in steps of {1000 * STEP_M:g} mm."
    )


def _convert(source: LabelledFile, cache: CachedFrames) -> None:
    def blocks(positions: IntArray, bar: tqdm[Any]) -> Iterator[Block]:
        for frames in np.array_split(positions, range(_BLOCK, len(positions), _BLOCK)):
            read = source.read(frames)
            steps = _rounded(read["depth_m"].numpy(), first=int(frames[0]), source=source)
            yield frames, 0, {"images": read["image"].numpy(), "depth": steps}
            bar.update(len(frames))

    cache.fill(np.arange(source.frames), blocks, title="Caching NYU Depth V2")


def _rounded(depth_BHW: NDArray[np.float32], *, first: int, source: LabelledFile) -> Any:
    """Depth in steps of 0.2 mm, little-endian uint16; 0 only where nothing was measured."""
    steps = np.rint(depth_BHW * _STEPS_PER_M)
    if steps.max() > np.iinfo(np.uint16).max:
        row = int(steps.reshape(len(steps), -1).max(1).argmax())
        raise ValueError(
            f"{source.path}, frame {first + row}: {source.key!r} reaches {depth_BHW.max():.4g} m, "
            f"but a cache holds at most {np.iinfo(np.uint16).max * STEP_M:.1f} m. Use the file "
            "without a cache (it is read as it is), or correct the depth."
        )
    steps[(depth_BHW > 0) & (steps == 0)] = 1
    return steps.astype("<u2")
