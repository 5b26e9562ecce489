"""A strategy and a data set that the package does not know: one file is enough."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from datamodules import Synthetic
from datamodules.base import Part
from kora.adapters import Strategy
from kora.backbone.vit import Backbone, Features


class ScalePooled(Strategy):
    """Scales the pooled vector by learned factors."""

    needs_backbone_grad = False

    def attach(self, backbone: Backbone) -> None:
        self.scale_D = nn.Parameter(torch.ones(backbone.pooled_width))

    def forward(self, backbone: Backbone, images: Tensor) -> Features:
        features = super().forward(backbone, images)
        return features._replace(pooled=features.pooled * self.scale_D)


class OneTestClass(Synthetic):
    """Its test set is read as one class, as the published evaluation read Tiny ImageNet."""

    def read_labels(self, part: Part) -> NDArray[np.int64]:
        labels = super().read_labels(part)
        return np.zeros_like(labels) if part == "test" else labels
