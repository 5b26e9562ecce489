"""The data set that the loader of a split reads: the original, or a replacement.

Shapes: n images of a split
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from datamodules.loading import ArrayDataset, LateDataset, ReadDataset
from datamodules.splits import IntArray

__all__ = ["ReplaceableDataset"]


class ReplaceableDataset(Dataset[Any]):
    """A data set that can be replaced by another with the same rows, also in existing loaders.

    `collate` is the collate function for `source`; None: torch's default.
    """

    def __init__(self, source: Dataset[Any], collate: Callable[[Any], Any] | None = None) -> None:
        self.source: Any = source
        #: Read instead of `source`; its `__getitems__` gives whole batches.
        self.replacement: Any = None
        self._collate = default_collate if collate is None else collate

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> Any:
        return (self.source if self.replacement is None else self.replacement)[row]

    def __getitems__(self, rows: Sequence[int]) -> Any:
        """A whole batch if the data set gives one, else its samples."""
        read = self.source if self.replacement is None else self.replacement
        whole = getattr(read, "__getitems__", None)
        return [read[row] for row in rows] if whole is None else whole(rows)

    def collate(self, fetched: Any) -> Any:
        """Collate as the data set wants it; a replacement gives whole batches."""
        return self._collate(fetched) if self.replacement is None else fetched

    def workers(self, wished: int) -> int:
        """Number of workers: none for a replacement, which needs no decoding."""
        return wished if self.replacement is None else 0

    def read_ahead(self) -> None:
        """Read what would be read late into memory, unless it is replaced."""
        if self.replacement is None and isinstance(self.source, LateDataset):
            self.source.make()

    def without_images(self, *, labels: IntArray, indices: IntArray) -> Any:
        """Whole batches of `source` without `image`, which is decoded only if its reader must."""
        if isinstance(self.source, ArrayDataset):
            columns = self.source.columns
            return ArrayDataset({k: column for k, column in columns.items() if k != "image"})
        known = {"label": torch.from_numpy(labels), "index": torch.from_numpy(indices)}
        if set(self.source[0]) <= {"image", *known}:
            return ArrayDataset(known)
        reader: Any = getattr(self.source, "reader", None)
        lean = reader.without_images() if hasattr(reader, "without_images") else None
        if lean is not None:
            numbers = self.source.numbers
            return ReadDataset(lean, numbers, labels=labels, indices=indices)
        return _WithoutImages(ReplaceableDataset(self.source, self._collate))


class _WithoutImages(Dataset[dict[str, Tensor]]):
    """Drops `image` from a data set that reads images and maps together."""

    def __init__(self, dataset: ReplaceableDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {name: value for name, value in self.dataset[row].items() if name != "image"}

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        batch = self.dataset.collate(self.dataset.__getitems__(rows))
        return {name: column for name, column in batch.items() if name != "image"}
