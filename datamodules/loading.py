"""From positions to batches: data sets that fetch whole batches, and a seeded shuffle.

Shapes: B images a batch, n images of a split
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

__all__ = ["ArrayDataset", "EpochShuffle", "as_is"]


class ArrayDataset(Dataset[dict[str, Tensor]]):
    """Tensors with a common first axis, fetched a batch at a time.

    `__getitems__` indexes each tensor once per batch, so there is no Python loop over images; use
    it with `collate_fn=as_is`.
    """

    def __init__(self, columns: dict[str, Tensor]) -> None:
        sizes = {name: len(column) for name, column in columns.items()}
        assert len(set(sizes.values())) == 1, f"columns differ in length: {sizes}"
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {name: column[row] for name, column in self.columns.items()}

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        picked = torch.as_tensor(rows, dtype=torch.int64)
        return {name: column.index_select(0, picked) for name, column in self.columns.items()}


def as_is(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Collate function for data sets whose `__getitems__` already returns a batch."""
    return batch


class EpochShuffle(Sampler[int]):
    """A permutation that depends on the seed and the epoch alone.

    Every strategy then sees the same images in the same order, however many random numbers its
    initialisation drew, and a resumed run goes on with the order that it would have had.
    Lightning calls `set_epoch`, and splits the order among processes when there are several.
    """

    def __init__(self, size: int, *, seed: int) -> None:
        self.size = size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        order: NDArray[Any] = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        return iter(order.tolist())
