"""Heads: from features to predictions."""

from kora.backbone.layer_summaries import LayerSummaries
from kora.heads.classification import HeadInit, LinearHead
from kora.heads.depth import DepthHead, LinearDepth
from kora.heads.detection import DetectionHead, FasterRCNNHead, FCOSHead, RetinaNetHead
from kora.heads.dpt import DPTDepth, DPTSegmentation
from kora.heads.queries import QuerySegmentation
from kora.heads.segmentation import LinearSegmentation, SegmentationHead

__all__ = [
    "DPTDepth",
    "DPTSegmentation",
    "DepthHead",
    "DetectionHead",
    "FCOSHead",
    "FasterRCNNHead",
    "HeadInit",
    "LayerSummaries",
    "LinearDepth",
    "LinearHead",
    "LinearSegmentation",
    "QuerySegmentation",
    "RetinaNetHead",
    "SegmentationHead",
]
