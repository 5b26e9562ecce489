"""Norms and singular values of a product of small factors, without the product.

Shapes: M rows, N columns, K inner width.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["norm", "singular_values"]


@torch.no_grad()
def singular_values(left_MK: Tensor, right_KN: Tensor) -> Tensor:
    """Singular values of left @ right, largest first: min(M, K, N) of them, float64.

    left = Q1 R1 and right^T = Q2 R2, so left @ right = Q1 (R1 R2^T) Q2^T, which has the singular
    values of the small R1 R2^T. No (M, N) matrix is made.
    """
    left, right = left_MK.detach().cpu().double(), right_KN.detach().cpu().double()
    r_left = torch.linalg.qr(left, mode="r").R
    r_right = torch.linalg.qr(right.T, mode="r").R
    found: Tensor = torch.linalg.svdvals(r_left @ r_right.T)
    return found


def norm(left_MK: Tensor, right_KN: Tensor) -> float:
    """Frobenius norm of left @ right."""
    return float(torch.linalg.vector_norm(singular_values(left_MK, right_KN)))
