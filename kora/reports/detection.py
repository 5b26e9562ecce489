"""Report of a detection run: audit of the boxes, pictures of fixed images, COCO json.

Shapes: n boxes of an image
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from kora.reports.audit_detection import DetectionAudit, audit_detection
from kora.reports.base import Report, Samples
from kora.reports.by_class import class_bars, write_classes
from kora.runs.durable import write_atomically

__all__ = ["DetectionReport", "coco_results"]


class DetectionReport(Report):
    """The report of a DetectionTask."""

    pictured = "boxes"

    @property
    def names(self) -> list[str]:
        """Names of the classes of the boxes."""
        known = list(getattr(self.datamodule, "box_names", None) or ())
        return known or [f"class {number}" for number in range(self.task.num_classes)]

    def audit(self) -> DetectionAudit | None:
        """The audit of the boxes; None if the data module does not give them."""
        if getattr(self.datamodule, "box_names", None) is None:
            return None
        return audit_detection(self.statistics("box_statistics"), class_names=self.names)

    def record(self) -> dict[str, Any]:
        """Names of the classes."""
        return {"class_names": self.names}

    def pictures(self, folder: Path) -> list[Path]:
        """Fixed test images with true and predicted boxes; AP by class."""
        made = super().pictures(folder)
        if made and self.task.test_ap is not None:
            notes = [f"{number:,} boxes" for number in self.task.test_boxes.tolist()]
            precision, path = self.task.test_ap.cpu().numpy(), folder / "ap_by_class.png"
            made.append(class_bars(precision, self.names, notes, path, score="AP"))
        return made

    def write_tables(self, folder: Path) -> None:
        """AP by class as CSV."""
        if self.samples is not None and self.task.test_ap is not None:
            precision, boxes = self.task.test_ap.cpu().numpy(), self.task.test_boxes.tolist()
            heads = "class", "ap", "boxes"
            write_classes(folder / "ap_by_class.csv", heads, self.names, precision, boxes)

    def draw(self, samples: Samples, path: Path, title: str = "") -> Path:
        """Images with true and predicted boxes."""
        from kora.reports import figures_detection

        images, truths, guesses = zip(*self._separate(samples), strict=True)
        return figures_detection.box_grid(
            images, truths, guesses, path, names=self.names, title=title
        )

    def sample_rows(self) -> list[dict[str, Any]]:
        """Image, and how many boxes there are and were found."""
        from kora.reports.figures_detection import SHOWN_FROM

        return [
            {
                "image": image.transpose(1, 2, 0),
                "boxes": len(truth["labels"]),
                "predicted": int((guess["scores"] >= SHOWN_FROM).sum()),
            }
            for image, truth, guess in (self._separate(self.samples) if self.samples else ())
        ]

    def _separate(self, samples: Samples) -> list[tuple[Any, dict[str, Any], dict[str, Any]]]:
        """Image (3, h, w) without filling, truth and prediction in its pixels, of each."""
        batch, predicted = samples
        factors_B4 = self.task.to_own(batch).cpu()
        truths = self.task.truths(batch, factors_B4.new_ones(factors_B4.shape))
        found = []
        for row, (image, truth, factor) in enumerate(
            zip(batch["image"], truths, factors_B4, strict=True)
        ):
            if "size" in batch:
                high, wide = batch["size"][row].tolist()
                image = image[:, :high, :wide]
            there = predicted["labels"][row] >= 0
            guess = {n: predicted[n][row][there].numpy() for n in ("boxes", "scores", "labels")}
            guess["boxes"] = guess["boxes"] / factor.numpy()
            found.append((image.numpy(), {n: v.cpu().numpy() for n, v in truth.items()}, guess))
        return found

    def write_predictions(self, folder: Path, batches: Sequence[Any]) -> Path:
        """Write predictions.json, as COCO's tools read results; an image's id is its index."""
        rows: list[dict[str, Any]] = []
        names = self._image_names()
        before = 0
        for batch in batches:
            numbers = batch.get("index", np.arange(before, before + len(batch["labels"])))
            before += len(numbers)
            for row, number in enumerate(numbers.tolist()):
                named = {} if names is None else {"file_name": names[number]}
                found = coco_results(batch, row, number, self.names)
                rows += [{**one, **named} for one in found]
        text = json.dumps(rows)
        return write_atomically(
            folder / "predictions.json", lambda path: path.write_text(text, encoding="utf-8")
        )

    def _image_names(self) -> Sequence[str] | None:
        """Paths of the test images, if the data has files."""
        try:
            found: Sequence[str] = self.datamodule.image_names("test")
        except (AttributeError, ValueError):
            return None
        return found


def coco_results(
    predicted: dict[str, Tensor], row: int, image_id: int, names: Sequence[str]
) -> list[dict[str, Any]]:
    """The boxes of an image of a predicted batch as results of COCO; boxes are x, y, w, h."""
    there_n = predicted["labels"][row] >= 0
    boxes_n4 = predicted["boxes"][row][there_n]
    boxes_n4[:, 2:] -= boxes_n4[:, :2]
    labels, scores = (predicted[name][row][there_n].tolist() for name in ("labels", "scores"))
    return [
        {
            "image_id": image_id,
            "category_id": label,
            "category": names[label],
            "bbox": [round(side, 4) for side in box],
            "score": round(score, 6),
        }
        for box, label, score in zip(boxes_n4.tolist(), labels, scores, strict=True)
    ]
