"""What the record of a run needs from a task, with empty defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kora.reports.audit import Audit
from kora.reports.audit_depth import DepthAudit
from kora.reports.audit_segmentation import SegmentationAudit
from kora.tasks import AdapterTask

__all__ = ["Report", "spread"]


class Report:
    """Audit, baselines, evaluation protocol, pictures and predictions of one kind of task.

    `audit` may be called before the task is built. `datamodule` may be None.
    """

    def __init__(self, task: AdapterTask, datamodule: Any) -> None:
        self.task: Any = task
        self.datamodule = datamodule

    def audit(self) -> Audit | DepthAudit | SegmentationAudit | None:
        """Whether these splits can support the metrics; None if nothing is known about them."""
        return None

    def gather(self, stage: str) -> None:
        """Collect results at the end of `val` or `test`; called on every process."""

    def baselines(self) -> dict[str, dict[str, float]]:
        """Baseline scores that only the evaluation itself can measure, by kind."""
        return {}

    def evaluation(self, stage: str) -> dict[str, Any]:
        """Rules of the evaluation on `val` or `test`; empty if the metrics' names are enough."""
        return {}

    def epoch_picture(self, folder: Path, epoch: int) -> Path | None:
        """A picture of the validation after an epoch; none overwrites another.

        Called on every process, as a sharded model runs on all or none; only the first one draws.
        """
        return None

    def pictures(self, folder: Path) -> list[Path]:
        """Pictures of the test, drawn into the run's folder from what `gather` collected."""
        return []

    def sample_rows(self) -> list[dict[str, Any]]:
        """One row for each test image in the pictures, with its prediction.

        Values are names, numbers, and images as uint8 arrays (H, W, 3).
        """
        return []

    def record(self) -> dict[str, Any]:
        """What the adapter folder says of the classes, in plain types."""
        return {"class_names": list(getattr(self.datamodule, "class_names", []))}

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """Predictions for uint8 (B, 3, H, W) images; called on every process."""
        return self.predict_batch({"image": images})

    def predict_batch(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predictions for the images of a batch; called on every process."""
        training = self.task.training
        self.task.eval()
        batch = {name: column.to(self.task.device) for name, column in batch.items()}
        try:
            with torch.inference_mode():
                found: dict[str, Tensor] = self.task.predict_step(batch, 0)
        finally:
            self.task.train(training)
        return found

    def write_predictions(self, folder: Path, batches: Sequence[Any]) -> Path | None:
        """Write the outputs of `predict` to a file."""
        return None


def spread(size: int, most: int) -> Any:
    """At most `most` places of `size`, evenly spread: the same images in every run on this data."""
    return np.linspace(0, size - 1, min(most, size)).astype(np.int64)
