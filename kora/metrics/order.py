"""The rows of a metric in an order that does not depend on the processes."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["each_once"]


def each_once(index_I: Tensor) -> Tensor:
    """Positions that put images in the order of their index, each index (>= 0) once.

    Images without an index (-1) come first and are all kept.
    """
    order = index_I.argsort(stable=True)
    index_I = index_I[order]
    first = torch.ones_like(index_I, dtype=torch.bool)
    first[1:] = (index_I[1:] != index_I[:-1]) | (index_I[1:] < 0)
    return order[first]
