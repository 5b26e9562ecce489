"""The choice of a task's report."""

from __future__ import annotations

from typing import Any

from kora.reports.base import Report
from kora.reports.classification import ClassificationReport
from kora.reports.depth import DepthReport
from kora.reports.detection import DetectionReport
from kora.reports.segmentation import SegmentationReport
from kora.tasks import (
    AdapterTask,
    ClassificationTask,
    DepthTask,
    DetectionTask,
    SegmentationTask,
)

__all__ = ["report_for"]


def report_for(task: AdapterTask, datamodule: Any) -> Report:
    """The report for this kind of task; for an unknown kind, one that adds nothing."""
    kinds: dict[type[AdapterTask], type[Report]] = {
        ClassificationTask: ClassificationReport,
        DepthTask: DepthReport,
        DetectionTask: DetectionReport,
        SegmentationTask: SegmentationReport,
    }
    report = next((one for kind, one in kinds.items() if isinstance(task, kind)), Report)
    return report(task, datamodule)
