"""Readouts: where the composed vector enters the representation that the head reads.

Shapes: B images, N tokens, C d_comp, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from kora.adapters.base import require_choice
from kora.backbones import Features

__all__ = ["ClsReadout", "Readout"]

Init = Literal["zero", "default"]


class Readout(nn.Module, ABC):
    """Adds the composed vector to the features."""

    @abstractmethod
    def build(self, d_comp: int, width: int) -> None:
        """Create the parameters for C and D."""

    @abstractmethod
    def forward(self, features: Features, composed: Tensor, alpha: float) -> Features:
        """Features with alpha times the read-out of (B, C), or (B, N, C), added."""


class ClsReadout(Readout):
    """h_final = h_CLS + alpha * Proj_final(c_L) (KoRA paper, equation 4).

    It adds to the vector that the head reads: the CLS token, or the pooled token of backbones
    without one. Of a token-wise composition it adds the mean over the tokens.

    Args:
        init: `zero` makes the adapter the identity at the start; `default` is the random start of
            the published notebook.
        trainable: False keeps the random start for ever, as the published notebook does by
            accident: Proj_final is created after its optimiser. It is then a buffer and counts
            nowhere. Only with `init: default`.

    Raises:
        ValueError: For an unknown `init`, or `trainable: false` with `init: zero`, which would have
            no effect at all.
    """

    def __init__(self, init: Init = "zero", *, trainable: bool = True) -> None:
        super().__init__()
        require_choice("ClsReadout", "init", init, get_args(Init))
        if not trainable and init == "zero":
            raise ValueError(
                "ClsReadout: trainable: false with init: zero can never leave zero, so the adapter "
                "would have no effect. Use init: default (the published protocol), or let it train."
            )
        self.init = init
        self.trainable = trainable

    def build(self, d_comp: int, width: int) -> None:
        """Proj_final: C * D + D numbers."""
        projection = nn.Linear(d_comp, width)
        if self.init == "zero":
            nn.init.zeros_(projection.weight)
            nn.init.zeros_(projection.bias)
        if self.trainable:
            self.weight_DC = nn.Parameter(projection.weight.detach())
            self.bias_D = nn.Parameter(projection.bias.detach())
        else:
            self.register_buffer("weight_DC", projection.weight.detach())
            self.register_buffer("bias_D", projection.bias.detach())

    def forward(self, features: Features, composed: Tensor, alpha: float) -> Features:
        """Pooled plus alpha * Proj_final(c); of (B, N, C) the mean over tokens."""
        if composed.ndim == 3:
            composed = composed.mean(dim=1)  # before Proj_final, which is affine: the same, cheaper
        delta = F.linear(composed, self.weight_DC, self.bias_D)
        return features._replace(pooled=features.pooled + alpha * delta)
