"""Blocks of rows that tell their numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from kora.feature_cache.table import (
    Layout,
)

OF = {"backbone": "b", "sites": ["qkv"]}


def numbered(layout: Layout, *, size: int = 4) -> Callable[[int], Iterator[Any]]:
    def blocks(first: int) -> Iterator[Any]:
        for start in range(first, layout.rows, size):
            rows = np.arange(start, min(start + size, layout.rows), dtype=np.float32)
            yield np.repeat(rows[:, None], layout.width, axis=1)

    return blocks
