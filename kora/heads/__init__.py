"""Heads: from features to predictions."""

from kora.heads.classification import HeadInit, LinearHead
from kora.heads.depth import DepthHead, LinearDepth
from kora.heads.dpt import DPTDepth
from kora.layer_summaries import LayerSummaries

__all__ = ["DPTDepth", "DepthHead", "HeadInit", "LayerSummaries", "LinearDepth", "LinearHead"]
