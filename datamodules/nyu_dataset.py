"""Frames of NYU Depth V2 a batch at a time, whatever they are read from.

Shapes: B frames of a batch, n frames of a split, H height, W width
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.splits import IntArray

__all__ = ["FrameDataset", "FrameReader"]


class FrameReader(Protocol):
    """What frames are read from: the labelled file, its cache, or a folder of frames.

    A reader can be pickled, and opens what it needs for each call.
    """

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every frame."""

    def read(self, frames: IntArray) -> dict[str, Tensor]:
        """`image` uint8 (B, 3, H, W) and `depth_m` float32 (B, H, W) of these frames."""


class FrameDataset(Dataset[dict[str, Tensor]]):
    """The frames of a split; `__getitems__` reads a whole batch. Use `collate_fn=as_is`.

    Args:
        reader: what to read from.
        frames: number of each frame (n,) for the reader.
        labels: label of each frame (n,).
        indices: position of each frame (n,) in its official part.
    """

    def __init__(
        self, reader: FrameReader, frames: IntArray, *, labels: IntArray, indices: IntArray
    ) -> None:
        self.reader = reader
        self.frames = frames
        self.labels = labels
        self.indices = indices

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {name: column[0] for name, column in self.__getitems__([row]).items()}

    def __getitems__(self, rows: Sequence[int] | NDArray[np.int64]) -> dict[str, Tensor]:
        picked = np.asarray(rows, dtype=np.int64)
        return {
            **self.reader.read(self.frames[picked]),
            "label": torch.from_numpy(self.labels[picked]),
            "index": torch.from_numpy(self.indices[picked]),
        }
