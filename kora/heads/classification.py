"""Classification heads. Shapes: B images, D width, K classes."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.backbone.vit import Backbone, Features

__all__ = ["HeadInit", "LinearHead"]

HeadInit = Literal["default", "zero"]


class LinearHead(nn.Module):
    """One linear layer on the pooled vector, and on summaries of earlier layers if there are any.

    It reads `Features.pooled`, as the adapter leaves it, and `Features.layers`.

    Args:
        backbone: Gives the width.
        num_classes: K, two or more.
        init: `default` is nn.Linear's random start. `zero`, as in Kolesnikov et al. 2019
            (arXiv:1912.11370), starts with equal logits: there is no noise to unlearn, which helps
            if steps are few or small.
        extra: Number of channels that the adapter appends to those of the backbone, and how their
            columns start: at `zero`, or as `orthogonal` rows of length 1.
        layers: E, the channels of earlier layers; their columns start at zero.
        dropout: Probability with which inputs of the layer are dropped in training.

    Raises:
        ValueError: For fewer than two classes, or a dropout outside [0, 1).
    """

    reads: tuple[str, ...] = ("pooled",)  # fields of `Features`; others need not be cached

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        init: HeadInit = "default",
        extra: tuple[int, Literal["zero", "orthogonal"]] | None = None,
        layers: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"head_dropout={dropout}, expected a probability in [0, 1).")
        self.dropout = dropout
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes}; a classifier needs two classes or more.")
        width = backbone.pooled_width
        self.linear = nn.Linear(width, num_classes)
        if init == "zero":
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)
        if layers:
            self.reads = ("pooled", "layers")
        if extra or layers:
            known = self.linear
            channels, start = extra or (0, "zero")
            columns_KC = torch.zeros(num_classes, channels)
            if start == "orthogonal":
                nn.init.orthogonal_(columns_KC)
            self.linear = nn.Linear(width + channels + layers, num_classes)
            zeros_KE = torch.zeros(num_classes, layers)
            with torch.no_grad():
                self.linear.weight.copy_(torch.cat((known.weight, columns_KC, zeros_KE), dim=1))
                self.linear.bias.copy_(known.bias)

    def forward(self, features: Features) -> Tensor:
        """Features of B images to logits (B, K)."""
        x = features.pooled
        if features.layers is not None:
            x = torch.cat((x, features.layers.to(x.dtype)), dim=1)
        logits: Tensor = self.linear(F.dropout(x, self.dropout, self.training))
        return logits
