"""A table of numbers on disk, one row per image: filled by one process, then read by many.

A table is a cache (datamodules/cache/rows.py) of one array. All columns of an image are in one row:
a batch is then read by one call, and an image from one place on disk.

Shapes: n rows, W numbers a row, B rows of a block or batch
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from datamodules.cache.rows import Block, RowCache, UnwritableError
from datamodules.splits import IntArray

__all__ = ["KINDS", "Column", "Layout", "Table", "open_table"]


class Table(RowCache):
    """A table of features; it is complete if no row is missing."""

    def __init__(self, folder: Path, of: Mapping[str, Any], layout: Layout) -> None:
        arrays = {"features": ((layout.rows, layout.width), KINDS[layout.kind])}
        super().__init__(folder, {"of": of, "layout": asdict(layout)}, arrays)
        self.layout = layout

    @property
    def missing(self) -> IntArray:
        """Rows that are still to be filled."""
        return np.flatnonzero(~self.ready)

    def read(self, rows: Sequence[int]) -> Tensor:
        """These rows (B, W), in any order."""
        part = torch.from_numpy(self.maps()["features"].take(rows, axis=0))
        return part.view(torch.bfloat16) if self.layout.kind == "bfloat16" else part

    def fill_missing(
        self, rows_of: Callable[[IntArray], Iterable[tuple[IntArray, NDArray[Any]]]]
    ) -> None:
        """Write the missing rows; call it under the lock.

        `rows_of` yields blocks, row numbers (B,) and rows (B, W), with at least the rows asked for.

        Raises:
            UnwritableError: There is no room, or no permission; what was written is removed, as
                half a table would keep a full disk full.
        """

        def blocks(missing: IntArray, bar: tqdm[Any]) -> Iterator[Block]:
            for places, rows_BW in rows_of(missing):
                bar.update(int((~self.ready[places]).sum()))
                yield places, 0, {"features": rows_BW}

        try:
            self.fill(np.arange(self.layout.rows), blocks, title="Feature cache")
        except UnwritableError:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        assert self.ready.all(), f"rows that did not come: {self.missing}"


def open_table(
    folder: Path, of: Mapping[str, Any], layout: Layout, *, say: Callable[[str], None]
) -> Table:
    """The table in a folder, every row compared with its checksum.

    Absent and damaged rows count as missing; `say` gets one line on what is damaged.
    """
    table = Table(folder, of, layout)
    if not folder.is_dir():
        return table
    try:
        damaged = table.load().drop_damaged()
    except (OSError, ValueError) as error:
        say(f"{folder} cannot be read: {error}: it is filled anew.")
        return table
    if len(damaged):
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        say(f"{folder / 'features.npy'} is damaged in row {damaged[0]}{more}: it is filled anew.")
    return table


#: NumPy has no bfloat16, so its bits are stored as whole numbers.
KINDS = {"float32": "<f4", "float16": "<f2", "bfloat16": "<i2"}


@dataclass(frozen=True)
class Column:
    """A tensor of each image: its name, its shape, and its type before it was cached."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def width(self) -> int:
        """Numbers per image."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """What a table holds: n rows of these columns, each number as `kind`."""

    rows: int
    columns: tuple[Column, ...]
    kind: str

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], *, rows: int, kind: str) -> Layout:
        """The layout for tensors (B, ...)."""
        columns = (
            Column(name, tuple(tensor.shape[1:]), str(tensor.dtype).removeprefix("torch."))
            for name, tensor in tensors.items()
        )
        return cls(rows, tuple(columns), kind)

    @property
    def width(self) -> int:
        """W, numbers per row."""
        return sum(self._widths())

    @property
    def row_bytes(self) -> int:
        """Bytes of an image."""
        return self.width * np.dtype(KINDS[self.kind]).itemsize

    def pack(self, tensors: Mapping[str, Tensor]) -> NDArray[Any]:
        """Rows (B, W) of tensors (B, ...).

        Raises:
            ValueError: A number is too large for this kind.
        """
        size = len(next(iter(tensors.values())))
        parts = [tensors[c.name].reshape(size, c.width).float() for c in self.columns]
        rows_BW = torch.cat(parts, dim=1).to(getattr(torch, self.kind)).cpu()
        if not torch.isfinite(rows_BW).all() and all(torch.isfinite(part).all() for part in parts):
            raise ValueError(
                f"the numbers are too large for {self.kind}. Use feature_cache_dtype: bfloat16 or "
                "float32"
            )
        bits = rows_BW.view(torch.int16) if self.kind == "bfloat16" else rows_BW
        array: NDArray[Any] = bits.numpy()
        return array

    def unpack(self, rows_BW: Tensor) -> dict[str, Tensor]:
        """Tensors (B, ...) of rows, in the types that they had before."""
        wide = {column.dtype: rows_BW.to(getattr(torch, column.dtype)) for column in self.columns}
        parts = {kind: rows.split_with_sizes(self._widths(), dim=1) for kind, rows in wide.items()}
        return {
            column.name: parts[column.dtype][place].view(len(rows_BW), *column.shape)
            for place, column in enumerate(self.columns)
        }

    def _widths(self) -> list[int]:
        return [column.width for column in self.columns]
