"""Pictures of a run, as PNG files.

Shapes: n images, H and W pixels, K classes
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from kora.console.formats import format_metric, is_rate, short_name
from kora.reports.canvas import (
    BLUE,
    DPI,
    GREEN,
    ORANGE,
    PERCENT,
    RED,
    literal,
    new_figure,
    save,
    write_cells,
)
from kora.reports.curves import CURVES, read_curves, tested_place

__all__ = ["confusion_matrix", "learning_curves", "sample_grid"]

_NAMED_CLASSES = 40  # above, class names on the axes would overlap
_COUNTED_CLASSES = 15  # above, counts in the cells would overlap


def learning_curves(
    metrics_csv: str | Path,
    out_png: str | Path,
    *,
    tested_step: int | None = None,
) -> Path:
    """Draw loss and main metric over the optimiser's steps, from a `metrics.csv`.

    Metrics that the file lacks are left out. A diamond is a test value, at the step of the tested
    checkpoint (`tested_step`, as in results.json); without it, at the step of the best validation,
    and the legend says so.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no metric of training or validation.
    """
    curves = read_curves(Path(metrics_csv))
    drawn = {
        name: {stage: curves[f"{stage}/{name}"] for stage in _STAGES if f"{stage}/{name}" in curves}
        for name in CURVES
    }
    drawn = {name: stages for name, stages in drawn.items() if stages}
    if not any(stage != "test" for stages in drawn.values() for stage in stages):
        raise ValueError(
            f"{metrics_csv}: no loss, accuracy, rmse_m, miou or map of training or validation "
            f"in it; it has: {', '.join(curves) or 'no values'}. Give the metrics.csv of a "
            "`kora fit` run."
        )
    figure, axes = new_figure(len(drawn), size=(4.6 * len(drawn), 3.6))
    last_step = max(steps[-1] for stages in drawn.values() for steps, _ in stages.values())
    monitored = next((n for n in CURVES if n != "loss" and f"val/{n}" in curves), "loss")
    tested = tested_place(curves, monitored, tested_step)
    for axis, (name, stages) in zip(axes, drawn.items(), strict=True):
        for stage, (steps, values) in stages.items():
            label, colour, marker = _STAGES[stage]
            if stage == "test":
                unit = " m" if name == "rmse_m" else ""
                label = f"{label} {format_metric(name, values[-1])}{unit}"
                place, known = (last_step, False) if tested is None else tested
                if not known:
                    label += " (at the last step)" if tested is None else " (at best validation)"
                axis.axvline(place, color=colour, lw=1, ls=":", zorder=0)
                axis.plot(
                    place, values[-1], marker, color=colour, ms=7, mec="white", label=label,
                    clip_on=False, zorder=4,
                )  # fmt: skip
                continue
            alone = len(steps) <= 40  # a dot for each value, while they can be told apart
            axis.plot(
                steps, values, color=colour, label=label, marker=marker if alone else None, ms=3.5
            )
        axis.set(xlabel="optimiser step", ylabel=CURVES[name])
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axis.set_xlim(-0.02 * last_step, 1.02 * last_step + 0.1)
        if is_rate(name):
            axis.set_ylim(
                0, min(1.02, 1.1 * max(max(values) for _, values in stages.values())) or 1
            )
            axis.yaxis.set_major_formatter(PERCENT)
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize=8)
    return save(figure, out_png)


def sample_grid(
    images: NDArray[np.uint8],
    truths: NDArray[np.int64],
    predictions: NDArray[np.int64],
    class_names: Sequence[str],
    out_png: str | Path,
    *,
    confidences: NDArray[np.floating[Any]],
) -> Path:
    """Draw test images (n, 3, H, W) with labels and predictions.

    A tick and a green frame mark a right answer; a cross and a red frame a wrong one, with the
    truth below.
    """
    columns = max(min(len(images), 4), math.ceil(math.sqrt(len(images))))
    rows = math.ceil(len(images) / columns)
    # In inches from the top left. One Axes for all, as one for each takes three times as long.
    width, above, gap = max(1.68, 3.4 / columns), 0.36, 0.07
    high = width * images.shape[2] / images.shape[3]
    size = (columns * (width + gap) + gap, rows * (above + high + gap))
    figure = Figure(figsize=size, dpi=DPI)
    axis = figure.add_axes((0, 0, 1, 1))
    how = "nearest" if max(images.shape[2:]) < 128 else "antialiased"
    for place, image in enumerate(images):
        left = gap + place % columns * (width + gap)
        top = place // columns * (above + high + gap) + above
        extent = (left, left + width, top + high, top)
        axis.imshow(image.transpose(1, 2, 0), extent=extent, interpolation=how, aspect="auto")
        truth, prediction = int(truths[place]), int(predictions[place])
        right = truth == prediction
        colour = GREEN if right else RED
        axis.add_patch(Rectangle((left, top), width, high, fill=False, ec=colour, lw=3))
        sure = f"{float(confidences[place]):.0%}"
        said = f"{'✓' if right else '✗'} {sure} {_short(class_names[prediction], 22)}"
        if not right:
            said += f"\n    true: {_short(class_names[truth], 20)}"
        axis.text(left, top - 0.06, said, fontsize=7.5, color=colour, va="bottom")
    axis.set(xlim=(0, size[0]), ylim=(size[1], 0))
    axis.axis("off")
    return save(figure, out_png)


def confusion_matrix(
    counts: NDArray[np.integer[Any]],
    class_names: Sequence[str],
    out_png: str | Path,
) -> Path:
    """Draw counts (K, K), rows true and columns predicted, coloured by share of the row.

    With few classes, the cells show the counts. With many, the axes have no names, and the largest
    confusions are listed instead. A class without test images is a grey row.
    """
    classes = len(class_names)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    named, counted = classes <= _NAMED_CLASSES, classes <= _COUNTED_CLASSES
    side = 1.8 + (0.4 * max(classes, 4) if counted else 5.0)
    widths = [1.0] if named else [1.0, 0.45]
    size = (sum(widths) * side + 1, side)
    figure, axes = new_figure(len(widths), size=size, widths=widths)
    axis = axes[0]
    axis.set_facecolor("#BBBBBB")
    # The square root shows the rare confusions of many classes, which a linear scale leaves white.
    scale = PowerNorm(1.0 if counted else 0.5, vmin=0, vmax=1)
    image = axis.imshow(shares, cmap="Blues", norm=scale, interpolation="nearest")
    bar = figure.colorbar(image, cax=axis.inset_axes((1.02, 0, 0.03, 1)), format=PERCENT)
    bar.set_ticks([0, 0.25, 0.5, 0.75, 1] if counted else [0, 0.05, 0.2, 0.5, 1])
    bar.set_label("share of the true class")
    axis.set(xlabel="predicted", ylabel="true")
    if named:
        names = [_short(name, 18) for name in class_names]
        font = 8 if counted else 6
        axis.set_xticks(range(classes), names, rotation=90, fontsize=font)
        axis.set_yticks(range(classes), names, fontsize=font)
    else:
        axis.set(xlabel="predicted class (number)", ylabel="true class (number)")
        axes[1].axis("off")
        listed = "\n".join(_confusions(counts, class_names, most=14))
        heading = "Most often confused\n(true → predicted)\n\n"
        axes[1].text(0, 1, heading + listed, va="top", fontsize=7.5)
    if counted:
        write_cells(axis, np.where(counts > 0, counts.astype(str), ""), shares > 0.55, size=7)
    return save(figure, out_png)


_STAGES = {
    "train": ("training", BLUE, "."),
    "val": ("validation", ORANGE, "o"),
    "test": ("test", GREEN, "D"),
}


def _confusions(counts: NDArray[Any], names: Sequence[str], *, most: int) -> list[str]:
    wrong = counts * ~np.eye(len(counts), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [
        f"{_short(names[t], 18)} → {_short(names[p], 18)}: {wrong[t, p]} of {counts[t].sum()}"
        for t, p in pairs
        if wrong[t, p]
    ]


def _short(name: str, length: int) -> str:
    return literal(short_name(name, length))
