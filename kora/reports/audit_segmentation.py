"""Audit of a segmentation run: can the masks of its splits support the metrics?

Shapes: K classes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from datamodules.segmentation.statistics import MaskStatistics
from kora.reports.audit import (
    NO_VALIDATION,
    TITLES,
    Findings,
    class_table,
    few_images,
    some_of,
)

__all__ = ["SegmentationAudit", "audit_segmentation"]


@dataclass(frozen=True, kw_only=True)
class SegmentationAudit(Findings):
    """What the masks of the splits can and cannot support."""

    splits: Mapping[str, MaskStatistics]
    class_names: Sequence[str]

    what = "This data"
    remedies = (
        "Check that the data folder is complete, and data.ignore_index.",
        "Correct the data, data.class_names or data.ignore_index, or split it otherwise.",
    )

    def to_dict(self) -> dict[str, Any]:
        """The findings in plain types, ready for JSON."""
        return {"class_names": list(self.class_names), **super().to_dict()}

    def render(self) -> Table:
        """A table of the splits and one of the classes; then problems and warnings."""
        rows = []
        for name, found in self.splits.items():
            seen = int((found.pixels > 0).sum())
            counts = (f"{found.of_images:,}", f"{found.images:,}", f"{1 - found.ignored_share:.1%}")
            rows.append((TITLES[name], *counts, f"{seen} of {len(self.class_names)}"))
        heads = ("images", "looked at", "counted", "classes")
        return self.page("Audit of the masks", heads, rows, ("", self._classes()))

    def _classes(self) -> Table:
        shares = [found.pixels / max(1, found.pixels.sum()) for found in self.splits.values()]
        texts = [[f"{share:.2%}" for share in of_split] for of_split in shares]
        return class_table(
            "Share of the counted pixels", self.class_names, self.splits, shares, texts
        )


def audit_segmentation(
    splits: Mapping[str, MaskStatistics], *, class_names: Sequence[str]
) -> SegmentationAudit:
    """Examine the masks of those of the splits `train`, `val` and `test` that have images."""
    fatal = [f"The {TITLES[s]} split is empty." for s in ("train", "test") if s not in splits]
    problems: list[str] = []
    warnings: list[str] = []
    seen = {name: found.pixels > 0 for name, found in splits.items()}
    for name, found in splits.items():
        if not seen[name].any():
            fatal.append(
                f"Every pixel of the {found.images:,} masks of the {TITLES[name]} split is ignored."
            )
        elif seen[name].sum() == 1:
            problems.append(
                f"The {TITLES[name]} split shows one class only "
                f"({class_names[found.majority]}): there is nothing to tell apart."
            )
        if found.all_ignored and seen[name].any():
            warnings.append(
                f"{found.all_ignored} of {found.images:,} masks of the {TITLES[name]} split are "
                "ignored as a whole."
            )
        warnings += few_images(name, found.of_images)
    if "train" in splits and "test" in splits:
        unseen = seen["test"] & ~seen["train"]
        if unseen.any() and splits["train"].images == splits["train"].of_images:
            share = splits["test"].pixels[unseen].sum() / splits["test"].pixels.sum()
            problems.append(
                f"No training mask shows {some_of(unseen, class_names)}, which is {share:.2%} of "
                "the test pixels: it cannot be learned."
            )
        absent = ~(seen["test"] | seen["train"])
        if absent.any():
            warnings.append(
                f"Neither training nor test masks show {some_of(absent, class_names)}: mIoU is the "
                "mean over the other classes, and over those that are predicted all the same."
            )
    if "val" not in splits:
        warnings.append(NO_VALIDATION)
    return SegmentationAudit(
        splits=splits,
        class_names=class_names,
        problems=(*fatal, *problems),
        warnings=tuple(warnings),
        fatal=tuple(fatal),
    )
