"""A pass through a backbone that never changes, in two halves, so that the first can be kept.

Shapes: B images.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kora.backbone.frozen_inputs import Inputs, features_from, named_features
from kora.backbone.vit import Backbone, Features

__all__ = ["FrozenPass"]


class FrozenPass:
    """What is read of a pass, and what is made of that; as it stands, the frozen features.

    What is read is the same in every epoch, so a run may keep it (kora/feature_cache/cache.py).
    """

    def key(self) -> dict[str, Any]:
        """What `inputs` depends on beside backbone and images, in plain types."""
        return {}

    def inputs(self, backbone: Backbone, images: Tensor) -> dict[str, Tensor]:
        """All that `features` reads of (B, 3, H, W) images, (B, ...) each, by name."""
        self.listen()
        return self.taken(backbone(images))

    def listen(self) -> None:
        """Before a pass, which several strategies may share: get ready for what is kept of it."""

    def taken(self, features: Features) -> dict[str, Tensor]:
        """After that pass, with its features: what `inputs` gives."""
        return named_features(features)

    def features(self, inputs: Inputs) -> Features:
        """What `Strategy.forward` gives, of inputs that may have been kept."""
        return features_from(inputs)
