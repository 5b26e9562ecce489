"""A score of each class, as bars and as a table: IoU of masks, average precision of boxes.

Shapes: K classes
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kora.console.formats import short_name
from kora.console.tables import text_cell
from kora.runs.durable import write_atomically

__all__ = ["class_bars", "write_classes"]

Array = NDArray[Any]


def class_bars(
    scores: Array, names: Sequence[str], notes: Sequence[str], out_png: Path, *, score: str
) -> Path:
    """Draw a score (K,) by class, the best first, with a note behind each.

    A class without a score (NaN) is left out.
    """
    from kora.reports.canvas import BLUE, GREY, PERCENT, literal, new_figure, save

    known = np.flatnonzero(np.isfinite(scores))
    order = known[np.argsort(-scores[known], kind="stable")]
    figure, (axis,) = new_figure(1, size=(6.5, 0.6 + 0.24 * max(1, len(order))))
    axis.barh(range(len(order)), scores[order], color=BLUE, height=0.7)
    labels = [literal(short_name(names[k], 28)) for k in order]
    axis.set_yticks(range(len(order)), labels, fontsize=8)
    for place, k in enumerate(order):
        text = f"{100 * scores[k]:.1f} %  ({notes[k]})"
        axis.text(float(scores[k]) + 0.01, place, text, va="center", fontsize=7, color=GREY)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.35)
    axis.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axis.xaxis.set_major_formatter(PERCENT)
    axis.set_xlabel(f"test {score}")
    axis.spines[["top", "right"]].set_visible(False)
    return save(figure, out_png)


def write_classes(
    path: Path, heads: Sequence[str], names: Sequence[str], scores: Array, others: Sequence[Any]
) -> Path:
    """Write a CSV file with name, score and one more number of each class; NaN is left empty."""

    def write(target: Path) -> None:
        with target.open("w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow(heads)
            for name, value, other in zip(names, scores, others, strict=True):
                out.writerow([text_cell(name), "" if value != value else f"{value:.6f}", other])

    return write_atomically(path, write)
