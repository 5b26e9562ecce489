"""The old import path of `kora.backbone.sharding`, which configs name."""

from kora.backbone.sharding import ShardedBackbone

__all__ = ["ShardedBackbone"]
