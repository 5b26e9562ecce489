"""Reports: what the record of a run asks of each kind of task."""

from __future__ import annotations

from typing import Any

from kora.reports.base import Report
from kora.reports.classification import ClassificationReport
from kora.reports.depth import DepthReport
from kora.reports.fusion import FusionReport, fusion_report_for
from kora.tasks import AdapterTask, ClassificationTask, DepthTask

__all__ = [
    "ClassificationReport",
    "DepthReport",
    "FusionReport",
    "Report",
    "fusion_report_for",
    "report_for",
]


def report_for(task: AdapterTask, datamodule: Any) -> Report:
    """The report of this kind of task; of another kind, one that adds nothing."""
    if isinstance(task, ClassificationTask):
        return ClassificationReport(task, datamodule)
    if isinstance(task, DepthTask):
        return DepthReport(task, datamodule)
    return Report(task, datamodule)
