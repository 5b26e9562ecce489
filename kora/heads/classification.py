"""Classification heads. Shapes: B images, D width, K classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.backbones import Backbone, Features

__all__ = ["LinearHead"]


class LinearHead(nn.Module):
    """One linear layer on the vector that the adapter left for it (`Features.pooled`).

    Args:
        backbone: Gives the width.
        num_classes: K, two or more.
        extra: Channels beside those of the backbone, whose columns start at zero.

    Raises:
        ValueError: For fewer than two classes.
    """

    reads = ("pooled",)  # of the features; what is not read need not be kept

    def __init__(self, backbone: Backbone, num_classes: int, *, extra: int = 0) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes}; a classifier needs two classes or more.")
        width = backbone.pooled_width
        self.linear = nn.Linear(width, num_classes)
        if extra:
            known_KD = self.linear.weight.detach()
            self.linear = nn.Linear(width + extra, num_classes)
            with torch.no_grad():
                self.linear.weight.copy_(F.pad(known_KD, (0, extra)))

    def forward(self, features: Features) -> Tensor:
        """Features of B images to logits (B, K)."""
        logits: Tensor = self.linear(features.pooled)
        return logits
