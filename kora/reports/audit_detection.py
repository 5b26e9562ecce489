"""Audit of a detection run: can the boxes of its splits support the metrics?

Shapes: K classes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from datamodules.detection.statistics import BoxStatistics
from kora.reports.audit import NO_VALIDATION, TITLES, Findings
from kora.reports.audit_segmentation import some_of

__all__ = ["DetectionAudit", "audit_detection"]

_FEW_IMAGES = 10
_MOST_LISTED = 30


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
        table = Table(title="Boxes of each class", title_justify="left", box=None)
        table.add_column("class")
        for name in self.splits:
            table.add_column(TITLES[name], justify="right")
        boxes = [found.boxes for found in self.splits.values()]
        order = np.argsort(-boxes[0], kind="stable") if boxes else np.arange(0)
        for k in order[:_MOST_LISTED].tolist():
            table.add_row(escape(self.class_names[k]), *(f"{counts[k]:,}" for counts in boxes))
        if len(self.class_names) > _MOST_LISTED:
            table.add_row(f"and {len(self.class_names) - _MOST_LISTED} more")
        return table


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
        if name != "train" and found.of_images < _FEW_IMAGES:
            warnings.append(
                f"The {TITLES[name]} split has only {found.of_images} images: its metrics say "
                "little."
            )
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
