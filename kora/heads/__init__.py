"""Heads: from features to predictions."""

from kora.heads.classification import LinearHead

__all__ = ["LinearHead"]
