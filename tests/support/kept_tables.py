"""Blocks of rows that tell their numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kora.feature_cache.table import Layout, Table, open_table

OF = {"backbone": "b", "sites": ["qkv"]}


def numbered(layout: Layout, *, size: int = 4) -> Callable[[Any], Iterator[Any]]:
    def blocks(missing: Any) -> Iterator[Any]:
        for start in range(0, len(missing), size):
            rows = missing[start : start + size]
            kind = np.dtype(np.float32)
            yield rows, np.repeat(rows[:, None].astype(kind), layout.width, axis=1)

    return blocks


def filled(folder: Path, layout: Layout, *, size: int = 4) -> Table:
    """The table in a folder, its missing rows filled with their numbers."""
    table = open_table(folder, OF, layout, say=lambda text: None)
    table.fill_missing(numbered(layout, size=size))
    return table


def rows_done(folder: Path) -> int:
    """Rows that lie in a table, also while it is filled; they are not checked."""
    try:
        return int(np.load(folder / "rows.npy")["ready"].sum())
    except (OSError, ValueError):
        return 0
