"""A forward pass through an unchanged backbone in two halves, of which the first can be cached.

Shapes: B images.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kora.backbone.frozen_inputs import Inputs, features_from, named_features
from kora.backbone.vit import Backbone, Features

__all__ = ["FrozenPass"]


class FrozenPass:
    """The two halves: `inputs` reads a pass, `features` computes features from that.

    Inputs are the same in every epoch, so a run may cache them (kora/feature_cache/cache.py). This
    base class gives the frozen features.
    """

    #: Whether the inputs hold all tokens of many layers, which a GPU computes faster than they are
    #: read.
    keeps_tokens = False
    #: Fields of `Features` that `features` changes besides the pooled vector and the levels.
    reads: tuple[str, ...] = ()

    def key(self) -> dict[str, Any]:
        """What `inputs` depends on besides backbone and images, in plain types."""
        return {}

    def inputs(self, backbone: Backbone, images: Tensor) -> dict[str, Tensor]:
        """All inputs of `features` for (B, 3, H, W) images, by name, (B, ...) each."""
        self.listen()
        return self.taken(backbone(images))

    def listen(self) -> None:
        """Before a pass, which several strategies may share: prepare to record it."""

    def taken(self, features: Features) -> dict[str, Tensor]:
        """After that pass, with its features: return what `inputs` returns."""
        return named_features(features)

    def features(self, inputs: Inputs) -> Features:
        """What `Strategy.forward` returns, from inputs that may come from a cache."""
        return features_from(inputs)
