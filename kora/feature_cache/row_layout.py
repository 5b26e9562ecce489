"""Tensors of a batch as rows of one table, and back.

Shapes: n rows, W numbers a row, B rows of a block or batch
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["KINDS", "Column", "Layout"]

#: NumPy has no bfloat16, so its bits lie there as whole numbers.
KINDS = {"float32": "<f4", "float16": "<f2", "bfloat16": "<i2"}


@dataclass(frozen=True)
class Column:
    """A tensor of each image: its name, its shape, and its type before it was kept."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def width(self) -> int:
        """Its numbers."""
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
        """W."""
        return sum(self._widths())

    @property
    def row_bytes(self) -> int:
        """Bytes of an image."""
        return self.width * np.dtype(KINDS[self.kind]).itemsize

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as JSON has them."""
        columns = [[column.name, list(column.shape), column.dtype] for column in self.columns]
        return {"rows": self.rows, "columns": columns, "kind": self.kind}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Layout:
        """The inverse of `to_dict`."""
        columns = (Column(name, tuple(shape), dtype) for name, shape, dtype in record["columns"])
        return cls(record["rows"], tuple(columns), record["kind"])

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
