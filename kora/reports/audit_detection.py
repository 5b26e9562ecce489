"""Audit of a detection run: can the boxes of its splits support the metrics?

Shapes: K classes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from datamodules.detection.statistics import BoxStatistics
from kora.reports.audit import (
    NO_VALIDATION,
    TITLES,
    Findings,
    class_table,
    few_images,
    some_of,
)

__all__ = ["DetectionAudit", "audit_detection"]


@dataclass(frozen=True, kw_only=True)
class DetectionAudit(Findings):
    """What the boxes of the splits can and cannot support."""

    splits: Mapping[str, BoxStatistics]
    class_names: Sequence[str]

    what = "This data"
    remedies = (
        "Check that the data folder is complete, and the file of the boxes.",
        "Correct the data or data.class_names, or split it otherwise.",
    )

    def to_dict(self) -> dict[str, Any]:
        """The findings in plain types, ready for JSON."""
        return {"class_names": list(self.class_names), **super().to_dict()}

    def render(self) -> Table:
        """A table of the splits and one of the classes; then problems and warnings."""
        rows = []
        for name, found in self.splits.items():
            images = f"{found.of_images:,}", f"{found.images:,}", f"{found.empty:,}"
            sizes = f"{found.small:,}", f"{found.medium:,}", f"{found.large:,}"
            rows.append((TITLES[name], *images, f"{int(found.boxes.sum()):,}", *sizes))
        heads = ("images", "looked at", "without boxes", "boxes", "small", "medium", "large")
        return self.page("Audit of the boxes", heads, rows, ("", self._classes()))

    def _classes(self) -> Table:
        boxes = [found.boxes for found in self.splits.values()]
        texts = [[f"{count:,}" for count in of_split] for of_split in boxes]
        return class_table("Boxes of each class", self.class_names, self.splits, boxes, texts)


def audit_detection(
    splits: Mapping[str, BoxStatistics], *, class_names: Sequence[str]
) -> DetectionAudit:
    """Examine the boxes of those of the splits `train`, `val` and `test` that have images."""
    fatal = [f"The {TITLES[s]} split is empty." for s in ("train", "test") if s not in splits]
    problems: list[str] = []
    warnings: list[str] = []
    for name, found in splits.items():
        if not found.boxes.any():
            fatal.append(f"No image of the {TITLES[name]} split has a box.")
        if found.outside:
            warnings.append(
                f"{found.outside:,} boxes of the {TITLES[name]} split reach beyond their image, "
                "and were clipped."
            )
        warnings += few_images(name, found.of_images)
    if "train" in splits and "test" in splits:
        trained, tested = (splits[name].boxes > 0 for name in ("train", "test"))
        unseen, absent = tested & ~trained, ~(tested | trained)
        if unseen.any() and splits["train"].images == splits["train"].of_images:
            share = splits["test"].boxes[unseen].sum() / splits["test"].boxes.sum()
            problems.append(
                f"No training image has a box of {some_of(unseen, class_names)}, which is "
                f"{share:.2%} of the test boxes: it cannot be learned."
            )
        if absent.any():
            warnings.append(
                f"Neither training nor test images have a box of {some_of(absent, class_names)}: "
                "mAP is the mean over the other classes."
            )
    if "val" not in splits:
        warnings.append(NO_VALIDATION)
    return DetectionAudit(
        splits=splits,
        class_names=class_names,
        problems=(*fatal, *problems),
        warnings=tuple(warnings),
        fatal=tuple(fatal),
    )
