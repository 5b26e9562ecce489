"""Pictures of detection, as PNG files: predicted boxes next to the true ones.

Shapes: K classes, n boxes of an image, H and W pixels
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from kora.console.formats import short_name
from kora.reports.canvas import literal, new_figure, save
from kora.reports.palette import Colours, palette_of, text_on

__all__ = ["SHOWN_FROM", "box_grid"]

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
            high, wide = image.shape[1:]  # boxes are given between pixels, not by their centres
            axis.imshow(image.transpose(1, 2, 0), extent=(0, wide, high, 0))
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
        text = literal(short_name(names[int(label)], 18))
        if "scores" in found:
            text += f" {float(found['scores'][place]):.2f}"
        axis.text(
            x1, y1, text, fontsize=6, va="bottom", ha="left", clip_on=True, in_layout=False,
            color=text_on(palette[int(label)]),
            bbox={"facecolor": (red, green, blue), "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip
