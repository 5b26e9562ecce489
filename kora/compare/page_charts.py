"""The charts of the page that `kora compare` writes, and the key to their colours and markers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from kora.compare.comparison import Comparison
from kora.compare.figures_against import amounts, draw_lines
from kora.compare.inline_svg import hover
from kora.compare.label_placement import label_points
from kora.console.identity import Look, looks
from kora.reports.canvas import metric_along, new_figure
from kora.reports.curves import Curve

__all__ = ["Tested", "curve_chart", "key", "size_chart"]

_SIZE = (6.0, 3.7)  # inches
_SEEDS, _MARKED = 50, 40  # most lines of a group, and most values of a line with markers
_KEY = (28, 12)  # points

Tested = tuple[int, float]  # the step of the tested weights, and the value of the test


def size_chart(comparison: Comparison, shown: Mapping[str, Look] | None = None) -> Figure | None:
    """The metric of each group with its interval, over trainable parameters; None if unknown.

    The chart of `kora compare --against trainable`, tight around the values and with names.
    """
    over, points = amounts([comparison], "trainable")
    if not points:
        return None
    figure, axis = draw_lines(
        points, metric=comparison.metric, over=over, title="", shown=shown, size=_SIZE
    )
    axis.margins(0.12)
    label_points(axis, {name: point for name, (point,) in points.items()})
    return figure


def curve_chart(
    curves: Mapping[str, Sequence[Curve]],
    metric: str,
    shown: Mapping[str, Look] | None = None,
    *,
    tested: Mapping[str, Sequence[Tested]] | None = None,
) -> Figure | None:
    """A metric over the optimiser's steps: each seed faint, the mean of a group's seeds strong.

    None if there is no curve. The mean is drawn where all seeds of a group have a value. A diamond
    is the test of a seed.
    """
    drawn = {name: seeds for name, seeds in curves.items() if seeds}
    if not any(math.isfinite(v) for seeds in drawn.values() for _, ys in seeds for v in ys):
        return None
    shown = shown or looks(curves)
    figure, (axis,) = new_figure(1, size=_SIZE, title="")
    for name, seeds in drawn.items():
        style = shown[name].style
        faint = {"color": style["color"], "lw": 1, "alpha": 0.35}
        hover([axis.plot(*curve, **faint)[0] for curve in seeds[:_SEEDS]], f"{name}, a seed")
        mean = _mean(seeds)
        marker = style["marker"] if len(mean[0]) <= _MARKED else None
        hover(axis.plot(*mean, **style | {"marker": marker}, lw=2), name)
        if points := (tested or {}).get(name):
            hollow = {"color": style["color"], "mfc": "white", "mew": 1.6, "zorder": 3}
            hover(axis.plot(*zip(*points, strict=True), "D", **hollow), f"{name}, tested")
    axis.set_xlim(left=0)
    axis.set_xlabel("optimiser step")
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.xaxis.set_major_formatter("{x:,.0f}")
    metric_along(axis.yaxis, metric)
    return figure


def key(look: Look) -> Figure:
    """The key to a group: its marker on a piece of its line."""
    width, height = _KEY
    figure = Figure(figsize=(width / 72, height / 72))
    line = Line2D([1 / width, 0.5, 1 - 1 / width], [0.5] * 3, markevery=[1], lw=2, **look.style)
    figure.add_artist(line)
    return figure


def _mean(seeds: Sequence[Curve]) -> Curve:
    tables = [dict(zip(*curve, strict=True)) for curve in seeds]
    steps = sorted(set.intersection(*(set(table) for table in tables)))
    return steps, [sum(table[step] for table in tables) / len(tables) for step in steps]
