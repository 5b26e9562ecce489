"""A forward pass in two halves, of which the first can be cached: it never changes.

Shapes: B images, T tokens, D width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kora.backbone.frozen_inputs import Inputs, features_from, named_features
from kora.backbone.vit import Backbone, Features

__all__ = ["FrozenPass", "PrefixPass"]


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
    #: Name of a part of the backbone if its output is all that is kept, whatever strategy and head
    #: make of it; then both share the tables of others.
    prefix: str | None = None

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


class PrefixPass(FrozenPass):
    """The blocks before the first that a strategy changes or reads, and the rest of its pass."""

    keeps_tokens = True

    def __init__(self, strategy: Any, backbone: Backbone, blocks: int) -> None:
        self.strategy = strategy
        self.backbone = backbone
        self.blocks = blocks
        self.prefix = f"first_{blocks}_blocks"

    def key(self) -> dict[str, Any]:
        """How many blocks there are."""
        return {"blocks": self.blocks}

    def inputs(self, backbone: Backbone, images: Tensor) -> dict[str, Tensor]:
        """The tokens (B, T, D) that enter the next block."""
        return {"tokens": backbone.entering(images, self.blocks)}

    def features(self, inputs: Inputs) -> Features:
        """What the strategy's `forward` returns."""
        with self.backbone.from_block(self.blocks, inputs["tokens"]) as images:
            features: Features = self.strategy(self.backbone, images)
        return features
