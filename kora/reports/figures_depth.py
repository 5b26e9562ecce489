"""Pictures of depth, as PNG files: predictions next to measured depth.

Near is bright and far is dark in viridis, which readers with any colour vision see in order; too
near is purple and too far is orange.

Shapes: n images, H and W pixels
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kora.reports.canvas import GREY, new_figure, save

__all__ = ["depth_grid", "depth_range", "errors_of", "shaded"]

Array = NDArray[Any]
Float = NDArray[np.float64]

UNMEASURED, NOT_FINITE = "#8C8C8C", "#FF00FF"
_HEADINGS = ("image", "truth", "prediction", "error")
_PANEL = 2.3  # inches, the width of a picture in the grid
_STEPS_M = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)  # ends of the error's scale


def depth_grid(
    images: NDArray[np.uint8],
    truths: Array,
    predictions: Array,
    out_png: str | Path,
    *,
    title: str = "",
) -> Path:
    """Draw one row per image: image, truth, prediction, prediction minus truth with its RMSE.

    Truth and prediction share one scale in metres, that of the truths; predictions beyond it have
    the colour of its end. A truth of 0 means not measured: grey, and no error. A prediction that is
    not finite is magenta. Images are (n, 3, H, W), truths and predictions (n, H, W).
    """
    errors, rmse_m = errors_of(truths, predictions)
    measured, finite = truths > 0, np.isfinite(predictions)
    rows, (height, width) = len(images), truths.shape[1:]
    tall = _PANEL * height / width
    heights = [*[tall] * rows, 0.12]  # inches; the last for the colour bars
    size = (4 * _PANEL + 0.3, rows * (tall + 0.24) + 0.95 + 0.25 * bool(title))
    figure, axes = new_figure(4, rows=rows + 1, heights=heights, size=size, title=title)
    low, high = depth_range(truths)
    end = _error_end(errors)
    depths: dict[str, Any] = {
        "cmap": "viridis_r",
        "vmin": low,
        "vmax": high,
        "interpolation": "nearest",
    }
    signed: dict[str, Any] = {
        "cmap": "PuOr_r",
        "vmin": -end,
        "vmax": end,
        "interpolation": "nearest",
    }
    pixelated = "nearest" if max(height, width) < 256 else "antialiased"
    for row in range(rows):
        image, truth, prediction, error = axes[4 * row : 4 * row + 4]
        image.imshow(images[row].transpose(1, 2, 0), interpolation=pixelated)
        truth.imshow(truths[row], **depths)
        of_depth = prediction.imshow(np.where(finite[row], predictions[row], low), **depths)
        of_error = error.imshow(np.where(np.isfinite(errors[row]), errors[row], 0), **signed)
        for axis in (prediction, error):
            _paint(axis, ~finite[row], NOT_FINITE)
        for axis in (truth, error):
            _paint(axis, ~measured[row], UNMEASURED)
        for axis in (image, truth, prediction, error):
            axis.set(xticks=[], yticks=[])
        if not measured[row].all():
            _note(truth, f"{_percent(float(measured[row].mean()))} measured")
        _note(error, _rmse_words(float(rmse_m[row])))
    for axis, heading in zip(axes, _HEADINGS, strict=False):
        axis.set_title(heading, loc="left", fontsize=10, fontweight="bold")
    under_image, under_depths, spare, under_error = axes[-4:]
    under_image.axis("off")
    spare.remove()
    below = under_depths.get_gridspec()
    assert below is not None
    under_depths.set_subplotspec(below[-1, 1:3])
    _bar(figure, of_depth, under_depths, predictions[finite], "depth (m)")
    label = "too near  ←  error (m)  →  too far"
    bar = _bar(figure, of_error, under_error, errors[np.isfinite(errors)], label)
    bar.set_ticks([-end, -end / 2, 0, end / 2, end])
    figure.supxlabel(_caption(measured, finite), fontsize=8, color=GREY)
    return save(figure, out_png)


def errors_of(truths: Array, predictions: Array) -> tuple[Float, Float]:
    """Prediction minus truth (n, H, W), and RMSE (n,) of each image, in metres.

    Errors are NaN where nothing was measured or the prediction is not finite. RMSE leaves these
    out; it is NaN for an image with nothing left.
    """
    compared = (truths > 0) & np.isfinite(predictions)
    errors = np.full(truths.shape, np.nan)
    np.subtract(predictions, truths, out=errors, where=compared)
    squares = np.where(compared, errors, 0.0) ** 2
    pixels = compared.sum(axis=(1, 2))
    means = np.full(len(truths), np.nan)
    np.divide(squares.sum(axis=(1, 2)), pixels, out=means, where=pixels > 0)
    return errors, np.sqrt(means)


def depth_range(truths: Array) -> tuple[float, float]:
    """Ends of the scale, always different; nearly all measured depths are between them."""
    measured = truths[truths > 0]
    if not measured.size:
        return 0.0, 1.0
    low, high = (float(end) for end in np.percentile(measured, [0.5, 99.5]))
    return (low, high) if high - low > 1e-3 else (0.9 * low, 1.1 * high)


def shaded(depth_m: Array, low_m: float, high_m: float) -> NDArray[np.uint8]:
    """A depth map (H, W) in the colours of `depth_grid`, uint8 (H, W, 3).

    Grey where it is 0 (not measured), magenta where it is not finite.
    """
    finite = np.isfinite(depth_m)
    share = (np.where(finite, depth_m, low_m) - low_m) / (high_m - low_m)
    colours = np.asarray(colormaps["viridis_r"](np.clip(share, 0, 1)))[..., :3]
    colours[finite & (depth_m == 0)] = to_rgb(UNMEASURED)
    colours[~finite] = to_rgb(NOT_FINITE)
    return np.asarray(np.rint(255 * colours), dtype=np.uint8)


def _error_end(errors: Float) -> float:
    """A round number of metres that nearly all errors stay below."""
    sizes = np.abs(errors[np.isfinite(errors)])
    most = float(np.percentile(sizes, 98)) if sizes.size else 0.0
    return next((step for step in _STEPS_M if step >= most), most)


def _paint(axis: Axes, where: Array, colour: str) -> None:
    """Cover pixels (H, W) of a panel with a colour that is on neither scale."""
    rgba = np.zeros((*where.shape, 4))
    rgba[where] = to_rgba(colour)
    axis.imshow(rgba, interpolation="nearest")


def _note(axis: Axes, text: str) -> None:
    axis.set_title(text, loc="right", fontsize=8)


def _rmse_words(rmse_m: float) -> str:
    if math.isnan(rmse_m):
        return "nothing to compare"
    return f"RMSE {rmse_m:.3f} m"


def _bar(figure: Figure, mappable: Any, axis: Axes, values: Array, label: str) -> Colorbar:
    """A colour bar in `axis`, with an arrow at an end that some of the values exceed."""
    low, high = mappable.get_clim()
    below, above = bool((values < low).any()), bool((values > high).any())
    extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[below, above]
    bar = figure.colorbar(mappable, cax=axis, orientation="horizontal", extend=extend)
    bar.ax.tick_params(labelsize=8)
    bar.set_label(label, fontsize=8)
    return bar


def _caption(measured: Array, finite: Array) -> str:
    words = ["error: prediction − truth", "RMSE over every measured pixel, without a crop"]
    if not measured.all():
        words.append("grey: not measured")
    if not finite.all():
        words.append("magenta: not a finite number, left out of RMSE")
    return " · ".join(words)


def _percent(share: float) -> str:
    """Whole per cent; 100 and 0 only if the share is exactly that."""
    rounded = min(max(share, 0.01), 0.99) if 0 < share < 1 else share
    return f"{100 * rounded:.0f} %"
