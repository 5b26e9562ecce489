"""What the record of a run needs from a task, as far as all tasks have it in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from kora.reports.audit import Findings
from kora.tasks import AdapterTask

__all__ = ["Report", "Samples", "spread"]

Samples = tuple[dict[str, Tensor], dict[str, Tensor]]  # a batch, and its predictions
#: Images of a split whose depth, masks or boxes are looked at before training, at most.
_LOOKED_AT = {"train": 1000, "val": 200, "test": 200}

_PICTURED = 4


class Report:
    """Audit, baselines, evaluation protocol, pictures and predictions of one kind of task.

    `audit` may be called before the task is built. `datamodule` may be None.
    """

    #: Name of pictures of fixed images, `val_<name>/` and `test_<name>.png`; None: there are none.
    pictured: str | None = None

    def __init__(self, task: AdapterTask, datamodule: Any) -> None:
        self.task: Any = task
        self.datamodule = datamodule
        self.samples: Samples | None = None
        self._baselines: dict[str, dict[str, float]] = {}

    def audit(self) -> Findings | None:
        """Whether these splits can support the metrics; None if nothing is known about them."""
        return None

    def gather(self, stage: str) -> None:
        """Collect results at the end of `val` or `test`; called on every process.

        These are the scores of the baselines, and after the test predictions of some images.
        """
        self._baselines = self.task.baselines()
        if stage == "test":
            self.samples = self.predicted("test")

    def baselines(self) -> dict[str, dict[str, float]]:
        """Baseline scores that only the evaluation itself can measure, by kind."""
        return self._baselines

    def evaluation(self, stage: str) -> dict[str, Any]:
        """The protocol of the task, with the name of the official part that was evaluated.

        Empty if the names of the metrics are enough.
        """
        parts = getattr(self.datamodule, "official_parts", {})
        split = "val" if stage == "val" else str(parts.get("test", "test"))
        found: dict[str, Any] = self.task.evaluation(split)
        return found

    def statistics(self, of: str) -> dict[str, Any]:
        """What a method of the data module, such as `depth_statistics`, says of each split."""
        data = self.datamodule
        data.setup_splits()
        self.evaluation("test")  # refuses a protocol of another split before training
        return {
            split: getattr(data, of)(split, most_images=most)
            for split, most in _LOOKED_AT.items()
            if len(data.indices(split))
        }

    def predicted(self, split: str) -> Samples | None:
        """Some images of a split, always the same, with their predictions; None if it has none."""
        data = self.datamodule
        if self.pictured is None or not hasattr(data, "samples") or not len(data.indices(split)):
            return None
        batch = data.samples(split, spread(len(data.indices(split)), _PICTURED))
        return batch, self.predict_batch(batch)

    def draw(self, samples: Samples, path: Path, title: str = "") -> Path:
        """Draw what `predicted` gave; for reports with `pictured`."""
        raise NotImplementedError(f"{type(self).__name__} has no draw.")

    def epoch_picture(self, folder: Path, epoch: int) -> Path | None:
        """Fixed validation images after an epoch; no picture overwrites another.

        Called on every process, as a sharded model runs on all or none; only the first one draws.
        """
        samples = self.predicted("val")
        if samples is None or rank_zero_only.rank:  # type: ignore[attr-defined]
            return None
        path = folder / f"val_{self.pictured}" / f"epoch_{epoch:03d}.png"
        return self.draw(samples, path, f"epoch {epoch}")

    def pictures(self, folder: Path) -> list[Path]:
        """Pictures of the test, drawn into the run's folder from what `gather` collected."""
        if self.samples is None:
            return []
        return [self.draw(self.samples, folder / f"test_{self.pictured}.png")]

    def write_tables(self, folder: Path) -> None:
        """Tables of the test that stand beside its pictures, with or without these."""

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
