"""Report of a classification: audit of the labels, confusion matrix, sample images, CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kora.console.tables import text_cell
from kora.reports.audit import Audit, audit
from kora.reports.base import Report, spread
from kora.runs.durable import write_atomically

__all__ = ["ClassificationReport"]

_PICTURED = 16


class ClassificationReport(Report):
    """The report of a ClassificationTask."""

    confusion: NDArray[np.int64] | None = None  # (K, K), true by predicted

    def audit(self) -> Audit | None:
        """The audit of the labels; None if the data module does not give them."""
        data = self.datamodule
        if data is None or not hasattr(data, "labels"):
            return None
        return audit(
            {split: data.labels(split) for split in ("train", "val", "test")},
            num_classes=data.num_classes,
            class_names=data.class_names,
            left_out=self.task.leave_out,
        )

    def gather(self, stage: str) -> None:
        """After the test: the confusion matrix of all processes, and predictions of some images."""
        if stage != "test":
            return
        self.confusion = self.task.test_confusion.compute().cpu().numpy()
        data = self.datamodule
        if hasattr(data, "images"):
            labels = data.labels("test")
            shown = spread(len(labels), _PICTURED)
            batch = {"image": data.images("test", shown), "label": torch.from_numpy(labels[shown])}
            self.samples = batch, self.predict(batch["image"])

    def pictures(self, folder: Path) -> list[Path]:
        """Confusion matrix, and test images with labels and predictions."""
        if self.confusion is None or self.samples is None:
            return []
        from kora.reports import figures

        confusion, samples = folder / "confusion_matrix.png", folder / "test_samples.png"
        names = self.datamodule.class_names
        figures.confusion_matrix(self.confusion, names, confusion)
        batch, predicted = self.samples
        figures.sample_grid(
            batch["image"].numpy(),
            batch["label"].numpy(),
            predicted["prediction"].numpy(),
            names,
            samples,
            confidences=predicted["confidence"].numpy(),
        )
        return [confusion, samples]

    def sample_rows(self) -> list[dict[str, Any]]:
        """Image, label, prediction, confidence, and whether it is right."""
        if self.samples is None:
            return []
        batch, predicted = self.samples
        names = self.datamodule.class_names
        guesses, confidences = predicted["prediction"].tolist(), predicted["confidence"].tolist()
        return [
            {
                "image": image.permute(1, 2, 0).numpy(),
                "label": names[label],
                "prediction": names[guess],
                "confidence": confidence,
                "right": bool(label == guess),
            }
            for image, label, guess, confidence in zip(
                batch["image"], batch["label"].tolist(), guesses, confidences, strict=True
            )
        ]

    def write_predictions(self, folder: Path, batches: Sequence[Any]) -> Path:
        """Write predictions.csv, one row per image."""
        names = list(getattr(self.datamodule, "class_names", []))

        def write(target: Path) -> None:
            with target.open("w", newline="", encoding="utf-8") as file:
                out = csv.writer(file)
                out.writerow(["index", "label", "prediction", "class_name", "confidence"])
                for batch in batches:
                    columns = [batch[k].tolist() for k in ("prediction", "confidence")]
                    rows = len(columns[0])
                    index = batch["index"].tolist() if "index" in batch else [""] * rows
                    label = batch["label"].tolist() if "label" in batch else [""] * rows
                    for i, truth, guess, sure in zip(index, label, *columns, strict=True):
                        name = text_cell(names[guess]) if names else ""
                        out.writerow([i, truth, guess, name, f"{sure:.6f}"])

        return write_atomically(folder / "predictions.csv", write)
