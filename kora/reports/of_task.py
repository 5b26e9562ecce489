"""The choice of a task's report."""

from __future__ import annotations

from typing import Any

from kora.reports.base import Report
from kora.reports.classification import ClassificationReport
from kora.reports.depth import DepthReport
from kora.reports.segmentation import SegmentationReport
from kora.tasks import AdapterTask, ClassificationTask, DepthTask, SegmentationTask

__all__ = ["report_for"]


def report_for(task: AdapterTask, datamodule: Any) -> Report:
    """The report for this kind of task; for an unknown kind, one that adds nothing."""
    if isinstance(task, ClassificationTask):
        return ClassificationReport(task, datamodule)
    if isinstance(task, DepthTask):
        return DepthReport(task, datamodule)
    if isinstance(task, SegmentationTask):
        return SegmentationReport(task, datamodule)
    return Report(task, datamodule)
