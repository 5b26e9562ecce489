"""The old place of `kora.backbone.vit`, which saved configs and scripts name."""

from kora.backbone.vit import Backbone

__all__ = ["Backbone"]
