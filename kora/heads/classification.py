"""Classification heads. Shapes: B images, D width, K classes."""

from __future__ import annotations

from torch import Tensor, nn

from kora.backbones import Backbone, Features

__all__ = ["LinearHead"]


class LinearHead(nn.Module):
    """One linear layer on the vector that the adapter left for it (`Features.pooled`).

    Args:
        backbone: Gives the width.
        num_classes: K, two or more.

    Raises:
        ValueError: For fewer than two classes.
    """

    reads = ("pooled",)  # of the features; what is not read need not be kept

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes}; a classifier needs two classes or more.")
        self.linear = nn.Linear(backbone.pooled_width, num_classes)

    def forward(self, features: Features) -> Tensor:
        """Features of B images to logits (B, K)."""
        logits: Tensor = self.linear(features.pooled)
        return logits
