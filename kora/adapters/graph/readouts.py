"""Readouts: where the composed vector enters the representation that the head reads.

Shapes: B images, T tokens (prefix tokens, then patches), P prefix tokens, C d_comp, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.adapters.arguments import require_choice
from kora.adapters.base import ExtraChannels, ExtraInit
from kora.backbone.vit import Features, Level

__all__ = ["ClsReadout", "LogitReadout", "QueryReadout", "Readout", "TokenReadout"]

Init = Literal["zero", "default"]


class Readout(nn.Module, ABC):
    """Adds the composed vector to the features."""

    #: Whether it needs a vector for every token, and so reaches a head that reads patch tokens.
    per_token: bool = False

    #: Whether it adds to the existing channels of the features, and appends none.
    in_place: bool = True

    #: Channels that it appends to the pooled vector, known once it is built.
    extra_channels: ExtraChannels | None = None

    #: Width of the vector that it sends to the queries of a decoder, known once it is built.
    query_channels: int | None = None

    #: Whether it starts at zero, so that it ignores c and passes no gradient to it.
    starts_closed: bool = False

    @abstractmethod
    def build(self, d_comp: int, width: int) -> None:
        """Create the parameters for C and D."""

    @abstractmethod
    def forward(self, features: Features, composed: Tensor, alpha: float) -> Features:
        """Features with alpha times the read-out of (B, C), or (B, T, C), added."""


class ClsReadout(Readout):
    """h_final = h_CLS + alpha * Proj_final(c_L) (KoRA paper, equation 4).

    It adds to the vector that the head reads: the CLS token, or the pooled token of backbones
    without one. For a token-wise composition, it adds the mean over the tokens.

    Args:
        init: `zero` makes the adapter the identity at the start; `default` is the random start of
            the published notebook.
        trainable: False keeps the random start, as the published notebook does by accident: it
            creates Proj_final after its optimiser. Proj_final is then a buffer and is not counted.
            Only with `init: default`.

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
        self.init: Init = init
        self.trainable = trainable
        self.starts_closed = init == "zero"

    def build(self, d_comp: int, width: int) -> None:
        """Proj_final: C * D + D numbers."""
        projection = _proj_final(d_comp, width, self.init)
        if self.trainable:
            self.weight_DC = nn.Parameter(projection.weight.detach())
            self.bias_D = nn.Parameter(projection.bias.detach())
        else:
            self.register_buffer("weight_DC", projection.weight.detach())
            self.register_buffer("bias_D", projection.bias.detach())

    def forward(self, features: Features, composed: Tensor, alpha: float) -> Features:
        """Pooled plus alpha * Proj_final(c); for (B, T, C), the mean over tokens."""
        if composed.ndim == 3:
            composed = composed.mean(dim=1)  # Proj_final is affine: same as after it, but cheaper
        delta = F.linear(composed, self.weight_DC, self.bias_D)
        return features._replace(pooled=features.pooled + alpha * delta)


class LogitReadout(Readout):
    """logits = W h + b + alpha * V c_L: the composition adds to the logits directly.

    It appends alpha * c_L to the pooled vector that the head reads. V, the head's columns for it,
    is part of the head: another task does not take V over, and starts it at zero if its adapter was
    trained elsewhere.

    Args:
        init: Start of V. `zero` is for nodes that start at random. `orthogonal`, for nodes that
            start at zero (`PlainMatrix("zero")`), gives rows of length 1 that are orthogonal to
            each other if d_comp is at least the number of classes. Each class then has its own
            direction in the composition space, and one matrix learns what a node sends there, not
            a product of two.

    Raises:
        ValueError: For an unknown `init`.
    """

    in_place = False

    def __init__(self, init: ExtraInit = "zero") -> None:
        super().__init__()
        require_choice("LogitReadout", "init", init, get_args(ExtraInit))
        self.init: ExtraInit = init
        self.starts_closed = init == "zero"

    def build(self, d_comp: int, width: int) -> None:
        """Nothing to create: V is C * K numbers of the head."""
        self.extra_channels = ExtraChannels(d_comp, self.init)

    def forward(self, features: Features, composed: Tensor, alpha: float) -> Features:
        """Pooled (B, D + C); for (B, T, C), the mean over tokens."""
        if composed.ndim == 3:
            composed = composed.mean(dim=1)
        pooled = torch.cat((features.pooled, alpha * composed.to(features.pooled.dtype)), dim=-1)
        return features._replace(pooled=pooled)


class QueryReadout(Readout):
    """The composition goes to the queries of a decoder: each adds its own map of alpha * c_L.

    For the head `QuerySegmentation`, whose queries look for one class each; the map is part of that
    head, and starts at zero. As in Rein (Wei et al. 2024, arXiv:2312.04265, section 3.3), what
    adapters of several layers say is composed into the queries; there, its mean, maximum and last
    are.
    """

    in_place = False
    starts_closed = True

    def build(self, d_comp: int, width: int) -> None:
        """Nothing to create: the map is part of the head."""
        self.query_channels = d_comp

    def forward(self, features: Features, composed: Tensor, alpha: float) -> Features:
        """Features with the query (B, C); for (B, T, C), the mean over tokens."""
        if composed.ndim == 3:
            composed = composed.mean(dim=1)
        return features._replace(query=alpha * composed)


class TokenReadout(Readout):
    """x_n + alpha * Proj_final(c_n) for every token n: the paper's equation (4), made dense.

    c_n is composed separately for each token (`pool: tokens`), so it reaches heads that read patch
    tokens: it is added to the patch and prefix tokens of the last block and of every level that the
    head reads, with one Proj_final for all. The pooled vector gets the mean over the tokens, so a
    classifier can read it too.

    Args:
        init: As for ClsReadout.

    Raises:
        ValueError: For an unknown `init`.
    """

    per_token = True

    def __init__(self, init: Init = "zero") -> None:
        super().__init__()
        require_choice("TokenReadout", "init", init, get_args(Init))
        self.init: Init = init
        self.starts_closed = init == "zero"

    def build(self, d_comp: int, width: int) -> None:
        """Proj_final: C * D + D numbers, shared by all tokens and levels."""
        projection = _proj_final(d_comp, width, self.init)
        self.weight_DC = nn.Parameter(projection.weight.detach())
        self.bias_D = nn.Parameter(projection.bias.detach())

    def forward(self, features: Features, composed: Tensor, alpha: float) -> Features:
        """Features with alpha * Proj_final(c) of (B, T, C) added, token by token."""
        assert composed.ndim == 3, "KoRA refuses other pools"
        delta_BTD = alpha * F.linear(composed, self.weight_DC, self.bias_D)
        prefix_tokens = features.prefix.shape[1]
        prefix_BPD, patches_BND = delta_BTD[:, :prefix_tokens], delta_BTD[:, prefix_tokens:]
        return features._replace(
            pooled=features.pooled + delta_BTD.mean(dim=1),
            patches=features.patches + patches_BND,
            prefix=features.prefix + prefix_BPD,
            levels=tuple(
                Level(level.patches + patches_BND, level.prefix + prefix_BPD)
                for level in features.levels
            ),
        )


def _proj_final(d_comp: int, width: int, init: Init) -> nn.Linear:
    projection = nn.Linear(d_comp, width)
    if init == "zero":
        nn.init.zeros_(projection.weight)
        nn.init.zeros_(projection.bias)
    return projection
