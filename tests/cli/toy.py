"""A strategy that the package does not know: proof that one file is enough."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kora.adapters import Strategy
from kora.backbones import Backbone, Features


class ScalePooled(Strategy):
    """Scales the pooled vector by learned factors."""

    needs_backbone_grad = False

    def attach(self, backbone: Backbone) -> None:
        self.scale_D = nn.Parameter(torch.ones(backbone.pooled_width))

    def forward(self, backbone: Backbone, images: Tensor) -> Features:
        features = super().forward(backbone, images)
        return features._replace(pooled=features.pooled * self.scale_D)
