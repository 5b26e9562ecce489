"""Losses of dense tasks."""

from kora.losses.depth import DepthLoss, ScaleShiftInvariantLoss, SILogLoss
from kora.losses.segmentation import SegmentationLoss

__all__ = ["DepthLoss", "SILogLoss", "ScaleShiftInvariantLoss", "SegmentationLoss"]
