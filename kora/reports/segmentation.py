"""Report of a segmentation run: audit of the masks, pictures of fixed images, predicted masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.segmentation.masks import IGNORED
from kora.reports.audit_segmentation import SegmentationAudit, audit_segmentation
from kora.reports.base import Report, Samples
from kora.reports.by_class import class_bars, write_classes
from kora.reports.palette import coloured, palette_image, palette_of
from kora.runs.durable import write_atomically

__all__ = ["SegmentationReport"]


class SegmentationReport(Report):
    """The report of a SegmentationTask."""

    pictured = "masks"

    @property
    def names(self) -> list[str]:
        """Names of the classes of the masks."""
        known = list(getattr(self.datamodule, "mask_names", None) or ())
        return known or [f"class {number}" for number in range(self.task.num_classes)]

    @property
    def palette(self) -> list[tuple[int, int, int]]:
        """A colour for each class: that of the data, if it has colours."""
        return palette_of(len(self.names), getattr(self.datamodule, "palette", None))

    def audit(self) -> SegmentationAudit | None:
        """The audit of the masks; None if the data module does not give them."""
        data = self.datamodule
        if data is None or getattr(data, "mask_names", None) is None:
            return None
        if self.task.protocol.window == "slide" and getattr(data, "resize", "") == "stretch":
            raise ValueError(
                "model.protocol.window is slide, and data.resize: stretch makes every image as "
                "large as one window. Set data.resize: cover with an augmentation that crops "
                "(flip_resize_crop_color), or window: whole."
            )
        splits = self.statistics("mask_statistics")
        return audit_segmentation(splits, class_names=self.names)

    def record(self) -> dict[str, Any]:
        """Names and colours of the classes."""
        given = getattr(self.datamodule, "palette", None)
        return {"class_names": self.names, **({} if given is None else {"palette": self.palette})}

    def pictures(self, folder: Path) -> list[Path]:
        """Fixed test images with truth, prediction and mistakes; IoU by class."""
        made = super().pictures(folder)
        if made and self.task.test_iou is not None:
            iou, shares = self.task.test_iou.cpu().numpy(), self.task.test_shares.tolist()
            notes = [f"{100 * share:.2g} % of the pixels" for share in shares]
            path = folder / "iou_by_class.png"
            made.append(class_bars(iou, self.names, notes, path, score="IoU"))
        return made

    def write_tables(self, folder: Path) -> None:
        """IoU by class as CSV."""
        if self.samples is not None and self.task.test_iou is not None:
            iou, shares = self.task.test_iou.cpu().numpy(), self.task.test_shares.tolist()
            heads, told = ("class", "iou", "share_of_pixels"), [f"{share:.6f}" for share in shares]
            write_classes(folder / "iou_by_class.csv", heads, self.names, iou, told)

    def sample_rows(self) -> list[dict[str, Any]]:
        """Image, truth and prediction in colours, and the share of pixels that are right."""
        if self.samples is None:
            return []
        rows = []
        for image, truth, guess in _separate(self.samples):
            counted = truth != IGNORED
            rows.append(
                {
                    "image": image.transpose(1, 2, 0),
                    "truth": coloured(truth, self.palette),
                    "prediction": coloured(guess, self.palette),
                    "right": float((guess == truth)[counted].mean()) if counted.any() else 0.0,
                }
            )
        return rows

    def draw(self, samples: Samples, path: Path, title: str = "") -> Path:
        """Images with truth, prediction and mistakes, and a legend."""
        from kora.reports import figures_segmentation

        images, truths, guesses = zip(*_separate(samples), strict=True)
        return figures_segmentation.mask_grid(
            images, truths, guesses, path, names=self.names, palette=self.palette, title=title
        )

    def write_predictions(self, folder: Path, batches: Sequence[Any]) -> Path:
        """Write a palette PNG of each image to `predictions`, by its index, and `legend.png`."""
        from kora.reports import figures_segmentation

        out, number = folder / "predictions", 0
        out.mkdir(exist_ok=True)
        figures_segmentation.legend(self.names, self.palette, out / "legend.png")
        for batch in batches:
            for row, (mask, size) in enumerate(zip(batch["mask"], batch["mask_size"], strict=True)):
                index = int(batch["index"][row]) if "index" in batch else number
                image = palette_image(mask[: size[0], : size[1]].numpy(), self.palette)
                write_atomically(
                    out / f"{index:06d}.png",
                    lambda path, image=image: image.save(path, format="PNG"),  # type: ignore[misc]
                )
                number += 1
        return out


def _separate(samples: Samples) -> list[tuple[Any, Any, Any]]:
    """Image (3, H, W), truth and prediction (H, W) of each, without padding."""
    batch, predicted = samples
    found = []
    for row, (high, wide) in enumerate(predicted["mask_size"].tolist()):
        image = batch["image"][row]
        if "size" in batch:
            image = image[:, : int(batch["size"][row, 0]), : int(batch["size"][row, 1])]
        truth, guess = batch["mask"][row, :high, :wide], predicted["mask"][row, :high, :wide]
        found.append((image.numpy(), truth.numpy(), np.asarray(guess.cpu())))
    return found
