"""Redundancy of nodes: how similar the directions of their vectors are.

Shapes: L nodes, B images, N tokens, C d_comp.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["redundancy"]


@torch.no_grad()
def redundancy(vectors: Sequence[Tensor]) -> float:
    """The mean over images (and tokens) and pairs i < j of |cos(p_i, p_j)|.

    0 for orthogonal nodes, 1 for parallel ones, about sqrt(2 / (pi C)) for random directions. A
    node with p = 0 counts as orthogonal to all. Each vector is (B, C) or (B, N, C).
    """
    if len(vectors) < 2:
        return 0.0
    unit = F.normalize(torch.stack([v.detach().float() for v in vectors], dim=-2), dim=-1)
    cosines = (unit @ unit.mT).abs()  # (..., L, L)
    nodes = len(vectors)
    off_diagonal = cosines.sum(dim=(-1, -2)) - cosines.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    return float(off_diagonal.mean() / (nodes * (nodes - 1)))
