"""Audit of a depth run: can the measured pixels of its splits support the metrics?

Shapes: n images of a split, H and W pixels
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from rich.table import Table

from datamodules.depth_statistics import DepthStatistics, histogram_table
from kora.metrics.protocol import DepthProtocol
from kora.reports.audit import NO_VALIDATION, TITLES, Findings, few_images

__all__ = ["DepthAudit", "audit_depth"]


@dataclass(frozen=True, kw_only=True)
class DepthAudit(Findings):
    """What the measured pixels of the splits can and cannot support."""

    splits: Mapping[str, DepthStatistics]

    what = "This data"
    remedies = (
        "Check that the data folder is complete, its unit (metres), and model.protocol.",
        "Correct the data or model.protocol.",
    )

    def render(self, *, histogram: bool = False) -> Table:
        """A table of the splits; then a histogram if asked for, problems and warnings."""
        named = {TITLES[name]: found for name, found in self.splits.items()}
        rows = []
        for title, found in named.items():
            counts = (f"{found.of_images:,}", f"{found.images:,}", f"{found.valid_share:.1%}")
            depths = (found.min_m, found.median_m, found.mean_m, found.max_m)
            rows.append((title, *counts, *(f"{depth:.2f}" for depth in depths)))
        heads = ("images", "looked at", "measured", "least", "median", "mean", "most")
        below = ("", histogram_table(named)) if histogram else ()
        return self.page("Audit of the depth, in metres", heads, rows, below)


def audit_depth(
    splits: Mapping[str, DepthStatistics],
    *,
    protocol: DepthProtocol,
    image_size: tuple[int, int],
) -> DepthAudit:
    """Examine the depth of those of the splits `train`, `val` and `test` that have images.

    Raises:
        ValueError: The crop of the protocol is not defined for this size.
    """
    protocol.valid(torch.zeros(1, *image_size))  # raises if the crop does not fit
    fatal = [f"The {TITLES[s]} split is empty." for s in ("train", "test") if s not in splits]
    problems: list[str] = []
    warnings: list[str] = []
    least, most = protocol.min_depth_m, protocol.max_depth_m
    for name, found in splits.items():
        title = TITLES[name]
        if found.valid_share == 0:
            fatal.append(f"The {title} split has no measured pixel in {found.images:,} images.")
        elif found.min_m >= most or found.max_m <= least:
            fatal.append(
                f"The {title} split has depths from {found.min_m:.3g} to {found.max_m:.3g} m, all "
                f"outside of the protocol's range of {least:g} to {most:g} m."
            )
        elif found.min_m == found.max_m:
            problems.append(
                f"Every depth of the {title} split is {found.min_m:.3g} m: a constant is perfect."
            )
        elif found.median_m > most:
            warnings.append(
                f"More than half of the {title} split lies beyond {most:g} m and does not count."
            )
    if "val" not in splits:
        warnings.append(NO_VALIDATION)
    for name, found in splits.items():
        warnings += few_images(name, found.of_images)
    return DepthAudit(
        splits=splits,
        problems=(*fatal, *problems),
        warnings=tuple(warnings),
        fatal=tuple(fatal),
    )
