"""Pictures of detection, as PNG files: predicted boxes next to the true ones, and AP by class.

Shapes: K classes, n boxes of an image, H and W pixels
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from kora.reports.canvas import BLUE, GREY, PERCENT, literal, new_figure, save
from kora.reports.palette import Colours, palette_of

__all__ = ["SHOWN_FROM", "box_grid", "class_bars"]

Array = NDArray[Any]
Boxes = Mapping[str, Array]  # `boxes` (n, 4) in pixels of the image, `labels` (n,), maybe `scores`

#: Predicted boxes with a lower score are not drawn.
SHOWN_FROM = 0.3

_HEADINGS = ("truth", f"prediction (scores from {SHOWN_FROM:g})")
_PANEL = 3.2  # inches, the width of a picture in the grid
_MOST_TEXTS = 30  # of an image: more cannot be read


def box_grid(
    images: Sequence[NDArray[np.uint8]],
    truths: Sequence[Boxes],
    predictions: Sequence[Boxes],
    out_png: str | Path,
    *,
    names: Sequence[str],
    title: str = "",
) -> Path:
    """Draw one row per image (3, H, W): the true boxes, and the predicted ones with their scores.

    Dashed true boxes are crowd regions, which do not count.
    """
    palette = palette_of(len(names))
    heights = [_PANEL * min(1.6, image.shape[1] / image.shape[2]) for image in images]
    size = (2 * _PANEL + 0.2, sum(heights) + 0.1 * len(heights) + 0.3 + 0.25 * bool(title))
    figure, axes = new_figure(2, rows=len(images), heights=heights, size=size, title=title)
    for row, (image, truth, guess) in enumerate(zip(images, truths, predictions, strict=True)):
        sure = np.asarray(guess["scores"]) >= SHOWN_FROM
        shown = {name: np.asarray(guess[name])[sure] for name in ("boxes", "labels", "scores")}
        for axis, boxes in zip(axes[2 * row : 2 * row + 2], (truth, shown), strict=True):
            axis.imshow(image.transpose(1, 2, 0))
            axis.set(xticks=[], yticks=[])
            _draw(axis, boxes, names, palette)
    for axis, heading in zip(axes, _HEADINGS, strict=False):
        axis.set_title(heading, loc="left", fontsize=10, fontweight="bold")
    return save(figure, out_png)


def _draw(axis: Axes, found: Boxes, names: Sequence[str], palette: Colours) -> None:
    crowd = found.get("crowd", np.zeros(len(found["labels"]), dtype=bool))
    for place, (box, label) in enumerate(zip(found["boxes"], found["labels"], strict=True)):
        red, green, blue = (part / 255 for part in palette[int(label)])
        x1, y1, x2, y2 = (float(side) for side in box)
        style = "--" if crowd[place] else "-"
        axis.add_patch(
            Rectangle(
                (x1, y1), x2 - x1, y2 - y1, fill=False, linewidth=1.4, linestyle=style,
                edgecolor=(red, green, blue),
            )
        )  # fmt: skip
        if place >= _MOST_TEXTS:
            continue
        text = textwrap.shorten(literal(names[int(label)]), 18, placeholder="…")
        if "scores" in found:
            text += f" {float(found['scores'][place]):.2f}"
        light = 0.3 * red + 0.6 * green + 0.1 * blue > 0.55
        axis.text(
            x1, y1, text, fontsize=6, va="bottom", ha="left", clip_on=True, in_layout=False,
            color="black" if light else "white",
            bbox={"facecolor": (red, green, blue), "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip


def class_bars(precision: Array, names: Sequence[str], boxes: Array, out_png: str | Path) -> Path:
    """Draw average precision (K,) by class, the best first, with the number (K,) of true boxes.

    A class without a true box (NaN) is left out.
    """
    known = np.flatnonzero(np.isfinite(precision))
    order = known[np.argsort(-precision[known], kind="stable")]
    figure, (axis,) = new_figure(1, size=(6.5, 0.6 + 0.24 * max(1, len(order))))
    axis.barh(range(len(order)), precision[order], color=BLUE, height=0.7)
    labels = [textwrap.shorten(literal(names[k]), 28, placeholder="…") for k in order]
    axis.set_yticks(range(len(order)), labels, fontsize=8)
    for place, k in enumerate(order):
        text = f"{100 * precision[k]:.1f} %  ({int(boxes[k]):,} boxes)"
        axis.text(float(precision[k]) + 0.01, place, text, va="center", fontsize=7, color=GREY)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.35)
    axis.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axis.xaxis.set_major_formatter(PERCENT)
    axis.set_xlabel("test AP")
    axis.spines[["top", "right"]].set_visible(False)
    return save(figure, out_png)
