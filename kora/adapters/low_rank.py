"""The low-rank correction that LoRA, DoRA and KoRA add to a linear layer.

Shapes: I input width, O output width, R rank.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.backbone.kernels import Update
from kora.backbone.sites import Site

__all__ = ["LowRankDelta"]


class LowRankDelta(nn.Module):
    """Trainable low-rank correction, alpha * B(A x), for one site.

    Starts at exactly zero (B is zero), so step 0 equals the frozen backbone. `alpha` multiplies
    directly, as in the KoRA paper; peft's `lora_alpha` is alpha * rank.
    Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
    """

    def __init__(self, site: Site, rank: int, *, alpha: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__()
        limit = min(site.d_in, site.d_out)
        if rank > limit:
            raise ValueError(
                f"rank={rank} at site '{site.name}' ({site.d_in} to {site.d_out}) is larger than "
                f"the layer itself; expected 1 to {limit}."
            )
        self.alpha = alpha
        self.dropout = dropout
        self.down_RI = nn.Parameter(torch.empty(rank, site.d_in))
        self.up_OR = nn.Parameter(torch.zeros(site.d_out, rank))
        nn.init.kaiming_uniform_(self.down_RI, a=math.sqrt(5))  # as in Hu et al.'s code

    def low(self, x: Tensor) -> Tensor:
        """A x: (..., I) to (..., R)."""
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        return F.linear(x, self.down_RI)

    def up(self, low: Tensor) -> Tensor:
        """B low: (..., R) to (..., O), without alpha."""
        return F.linear(low, self.up_OR)

    def forward(self, x: Tensor) -> Tensor:
        """alpha * B A x: (..., I) to (..., O). Alpha multiplies the smallest tensor."""
        return self.up(self.alpha * self.low(x))

    def update(self) -> Update:
        """A, B, alpha and dropout for one operation with the frozen layer."""
        dropout = self.dropout if self.training else 0.0
        return Update(self.down_RI, self.up_OR, self.alpha, dropout=dropout)

    def folded(self, weight_OI: Tensor) -> Tensor:
        """The weight (O, I) with the correction: W + alpha B A."""
        return weight_OI + self.alpha * self.up_OR @ self.down_RI
