"""What the record of a run asks of a task, with the answers of one that has nothing to add."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kora.reports.audit import Audit
from kora.reports.audit_depth import DepthAudit
from kora.tasks import AdapterTask

__all__ = ["Report", "spread"]


class Report:
    """Audit, baselines, evaluation protocol, pictures and predictions of one kind of task.

    `audit` may come before the task is built. There may be no data.
    """

    def __init__(self, task: AdapterTask, datamodule: Any) -> None:
        self.task: Any = task
        self.datamodule = datamodule

    def audit(self) -> Audit | DepthAudit | None:
        """Whether these splits can support the metrics; None where nothing is known of them."""
        return None

    def gather(self, stage: str) -> None:
        """Collect what the end of `val` or `test` left; called on every process."""

    def baselines(self) -> dict[str, dict[str, float]]:
        """Scores beside the model's that only the evaluation itself could tell, by kind."""
        return {}

    def evaluation(self, stage: str) -> dict[str, Any]:
        """How the evaluation of `val` or `test` counts; empty where the metrics' names say it."""
        return {}

    def epoch_picture(self, folder: Path, epoch: int) -> Path | None:
        """A picture of the validation after an epoch; none overwrites another.

        Called on every process, as a model in shards runs on all or none; the first one draws.
        """
        return None

    def pictures(self, folder: Path) -> list[Path]:
        """Pictures of the test, drawn into the run's folder from what was gathered."""
        return []

    def sample_rows(self) -> list[dict[str, Any]]:
        """The test images of the pictures with what was said of them, a row each.

        Values are names, numbers, and pictures, uint8 (H, W, 3) arrays.
        """
        return []

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """Predictions for uint8 (B, 3, H, W) images; called on every process."""
        training = self.task.training
        self.task.eval()
        batch = {"image": images.to(self.task.device)}
        try:
            with torch.inference_mode():
                found: dict[str, Tensor] = self.task.predict_step(batch, 0)
        finally:
            self.task.train(training)
        return found

    def write_predictions(self, folder: Path, batches: Sequence[Any]) -> Path | None:
        """A file of what `predict` gave."""
        return None


def spread(size: int, most: int) -> Any:
    """At most `most` places of `size`, evenly spread: the same images in every run of this data."""
    return np.linspace(0, size - 1, min(most, size)).astype(np.int64)
