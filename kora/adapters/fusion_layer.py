"""One layer of AdapterFusion: attention of a token over the outputs of N adapters.

Shapes: B images, T tokens, N adapters, D width, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FusionLayer", "LowRankFusionLayer"]


class FusionLayer(nn.Module):
    """sum_n s_n V z_n, with s = softmax_n((Q h + b_q)^T (K z_n + b_k)).

    h is a token and z_n are the outputs of the adapters there. There is no 1 / sqrt(D), V has no
    bias, and the residual is outside. Q and K start normal with sigma 0.02 and zero bias; V starts
    as 1 on the diagonal and 1e-6 elsewhere. 3 D^2 + 2 D parameters.

    The sums are linear, so K is applied once to the query and V once to the mixture, not to every
    adapter: (Q h)^T K z_n = (K^T Q h)^T z_n, and sum_n s_n V z_n = V sum_n s_n z_n.
    Source: Pfeiffer et al. 2021, arXiv:2005.00247, section 3.2; starts as in AdapterHub's code.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width, bias=False)
        for layer in (self.query, self.key):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.value.weight, 1e-6)
        with torch.no_grad():
            self.value.weight.fill_diagonal_(1.0)

    def forward(self, h: Tensor, outputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Mixture (B, T, D) of N outputs (B, T, D), and their shares (B, T, N), for h (B, T, D)."""
        mixed, shares = _attend(self.query(h), self.key, outputs)
        return self.value(mixed), shares

    def penalty(self) -> Tensor:
        """||I - V||_F^2."""
        weight_DD = self.value.weight
        identity = torch.eye(len(weight_DD), device=weight_DD.device, dtype=weight_DD.dtype)
        return (identity - weight_DD).square().sum()


class LowRankFusionLayer(nn.Module):
    """The same attention with Q and K of R rows, and V = diag(v) + U W of rank R.

    Not a published form: it makes fusion comparable at the budget of other adapters. V starts as
    the identity (v is one, U zero). 4 D R + 2 R + D parameters.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        if rank > width:
            raise ValueError(
                f"LowRankFusion: rank={rank} is larger than the layer's width ({width}); expected "
                f"1 to {width}. For full matrices, use AdapterFusion."
            )
        self.query = nn.Linear(width, rank)
        self.key = nn.Linear(width, rank)
        for layer in (self.query, self.key):
            # Scores have the variance of the full layer, from R terms instead of D.
            nn.init.normal_(layer.weight, std=0.02 * (width / rank) ** 0.25)
            nn.init.zeros_(layer.bias)
        self.value_D = nn.Parameter(torch.ones(width))
        self.value_down_RD = nn.Parameter(torch.empty(rank, width))
        self.value_up_DR = nn.Parameter(torch.zeros(width, rank))
        nn.init.kaiming_uniform_(self.value_down_RD, a=math.sqrt(5))  # as W_down of LoRA

    def forward(self, h: Tensor, outputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Mixture (B, T, D) of N outputs (B, T, D), and their shares (B, T, N), for h (B, T, D)."""
        mixed, shares = _attend(self.query(h), self.key, outputs)
        low = F.linear(F.linear(mixed, self.value_down_RD), self.value_up_DR)
        return mixed * self.value_D + low, shares

    def penalty(self) -> Tensor:
        """||I - V||_F^2 from (R, R) products: no (D, D) matrix is made."""
        excess_D, up_DR, down_RD = self.value_D - 1, self.value_up_DR, self.value_down_RD
        diagonal_D = (up_DR * down_RD.T).sum(dim=1)
        low = ((up_DR.T @ up_DR) * (down_RD @ down_RD.T)).sum()
        return excess_D.square().sum() + 2 * (excess_D * diagonal_D).sum() + low


def _attend(q: Tensor, key: nn.Linear, outputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """sum_n s_n z_n and s, for q (B, T, Q), K (Q, D) with its bias, and N tensors z_n (B, T, D)."""
    looked_for = q @ key.weight  # (B, T, D)
    # q^T b_k is the same for every adapter, so the softmax cancels it; it is kept as published.
    offset = (q * key.bias).sum(dim=-1, keepdim=True)
    scores = [(looked_for * z).sum(dim=-1, keepdim=True) for z in outputs]
    shares = torch.softmax(torch.cat(scores, dim=-1) + offset, dim=-1)
    mixed = sum(shares[..., n, None] * z for n, z in enumerate(outputs))
    assert isinstance(mixed, Tensor)
    return mixed, shares
