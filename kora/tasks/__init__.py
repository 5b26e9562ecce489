"""Tasks: LightningModules that join a backbone, a strategy and a head."""

from kora.tasks.base import AdapterTask
from kora.tasks.classification import ClassificationTask
from kora.tasks.depth import DepthTask
from kora.tasks.detection import DetectionTask
from kora.tasks.segmentation import SegmentationTask

__all__ = ["AdapterTask", "ClassificationTask", "DepthTask", "DetectionTask", "SegmentationTask"]
