"""Heads: from features to predictions."""

from kora.backbone.layer_summaries import LayerSummaries
from kora.heads.classification import HeadInit, LinearHead
from kora.heads.depth import DepthHead, LinearDepth
from kora.heads.dpt import DPTDepth

__all__ = ["DPTDepth", "DepthHead", "HeadInit", "LayerSummaries", "LinearDepth", "LinearHead"]
