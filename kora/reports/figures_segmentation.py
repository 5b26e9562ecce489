"""Pictures of segmentation, as PNG files: predictions next to truths.

Shapes: n images, K classes, H and W pixels
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.patches import Patch
from numpy.typing import NDArray

from datamodules.segmentation.masks import IGNORED
from kora.console.formats import short_name
from kora.reports.canvas import literal, new_figure, save
from kora.reports.palette import IGNORED_COLOUR, Colours, coloured

__all__ = ["legend", "mask_grid"]

Array = NDArray[Any]

_HEADINGS = ("image", "truth", "prediction", "mistakes")
_PANEL = 2.3  # inches, the width of a picture in the grid
_MOST_NAMED = 24
_COLUMNS = 5
_DIMMED = 0.25  # how much of an image is left under its mistakes


def mask_grid(
    images: Sequence[NDArray[np.uint8]],
    truths: Sequence[Array],
    predictions: Sequence[Array],
    out_png: str | Path,
    *,
    names: Sequence[str],
    palette: Colours,
    title: str = "",
) -> Path:
    """Draw one row per image: image, truth, prediction, and the pixels that are wrong.

    Above the last is the share of counted pixels that are right. Images are (3, H, W) each, truths
    and predictions (H, W) of any one size; 255 does not count and is grey. A wrong pixel has the
    colour of the class that was predicted there.
    """
    rows = len(images)
    height, width = truths[0].shape
    tall = _PANEL * min(2.0, height / width)
    shown = sorted({int(k) for mask in (*truths, *predictions) for k in np.unique(mask)})
    named = [k for k in shown if k < len(names)][:_MOST_NAMED]
    below = 0.24 * -(-(len(named) + 1) // _COLUMNS) + 0.15
    size = (4 * _PANEL + 0.3, rows * (tall + 0.24) + below + 0.3 + 0.25 * bool(title))
    figure, axes = new_figure(
        4, rows=rows + 1, heights=[*[tall] * rows, below], size=size, title=title
    )
    for row, (picture, truth, guess) in enumerate(zip(images, truths, predictions, strict=True)):
        image, of_truth, of_guess, of_mistakes = axes[4 * row : 4 * row + 4]
        tall_px, wide_px = truth.shape  # the picture may have been stretched for the backbone
        image.imshow(picture.transpose(1, 2, 0), extent=(0, wide_px, tall_px, 0))
        of_truth.imshow(coloured(truth, palette), interpolation="nearest")
        of_guess.imshow(coloured(guess, palette), interpolation="nearest")
        of_mistakes.imshow(_mistakes(picture, truth, guess, palette), interpolation="nearest")
        for axis in (image, of_truth, of_guess, of_mistakes):
            axis.set(xticks=[], yticks=[])
        counted = truth != IGNORED
        right = float((guess == truth)[counted].mean()) if counted.any() else None
        said = "nothing counts" if right is None else f"{100 * right:.1f} % right"
        of_mistakes.set_title(said, loc="right", fontsize=8)
    for axis, heading in zip(axes, _HEADINGS, strict=False):
        axis.set_title(heading, loc="left", fontsize=10, fontweight="bold")
    for axis in axes[-3:]:
        axis.remove()
    under = axes[-4]
    grid = under.get_gridspec()
    assert grid is not None
    under.set_subplotspec(grid[-1, :])
    under.axis("off")
    handles = [_patch(palette[k], names[k]) for k in named]
    if 255 in shown:
        handles.append(_patch(IGNORED_COLOUR, "does not count"))
    under.legend(handles=handles, ncols=_COLUMNS, loc="center", frameon=False, fontsize=8)
    return save(figure, out_png)


def legend(names: Sequence[str], palette: Colours, out_png: str | Path) -> Path:
    """Draw the colour of each class with its name."""
    rows = -(-len(names) // 4)
    figure, (axis,) = new_figure(1, size=(7.5, 0.26 * rows + 0.2))
    axis.axis("off")
    handles = [_patch(colour, name) for colour, name in zip(palette, names, strict=True)]
    axis.legend(handles=handles, ncols=4, loc="center", frameon=False, fontsize=9)
    return save(figure, out_png)


def _mistakes(
    picture: NDArray[np.uint8], truth: Array, guess: Array, palette: Colours
) -> NDArray[np.uint8]:
    """The image in pale grey, with wrong pixels in the colour of the class predicted there."""
    grey_hw = picture.mean(axis=0)
    rows = np.arange(truth.shape[0]) * grey_hw.shape[0] // truth.shape[0]
    columns = np.arange(truth.shape[1]) * grey_hw.shape[1] // truth.shape[1]
    grey_HW = 255 - _DIMMED * (255 - grey_hw[rows][:, columns])
    shown = np.repeat(grey_HW[..., None], 3, axis=2).astype(np.uint8)
    wrong = (truth != IGNORED) & (guess != truth)
    shown[wrong] = coloured(guess, palette)[wrong]
    return shown


def _patch(colour: Sequence[int], name: str) -> Patch:
    short = literal(short_name(name, 26))
    red, green, blue = (part / 255 for part in colour)
    return Patch(color=(red, green, blue), label=short)
