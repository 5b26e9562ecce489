"""The pictures of `kora compare --against`: a metric over images, seconds or parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator

from kora.compare.comparison import Comparison, Group
from kora.compare.inline_svg import hover
from kora.console.formats import format_metric, is_rate
from kora.console.identity import Look, looks
from kora.reports.canvas import (
    GREY,
    legend_below,
    level_style,
    literal,
    metric_along,
    new_figure,
    save,
)

__all__ = ["AGAINST", "Point", "against", "amounts", "draw_lines", "one_metric"]

_Amount = Callable[[Comparison, Group], float | None]


def _training_images(table: Comparison, _: Group) -> float | None:
    images: float | None = (table.protocol.get("sizes") or {}).get("train")
    return images


#: What a metric is drawn over, with the label of its axis.
AGAINST: dict[str, tuple[str, _Amount]] = {
    "images": ("training images", _training_images),
    "seconds": ("seconds of training with its validations", lambda _, group: group.fit_seconds),
    "trainable": ("trainable parameters, the head included", lambda _, group: group.trainable),
}


class Point(NamedTuple):
    """A mean at x, with half of its 95 % interval."""

    x: float
    mean: float
    half_width: float


def one_metric(comparisons: Sequence[Comparison]) -> str:
    """The metric of all tables.

    Raises:
        ValueError: they have different ones.
    """
    metrics = sorted({table.metric for table in comparisons})
    if len(metrics) != 1:
        raise ValueError(
            f"--against draws one metric, and the tables are of {' and '.join(metrics)}. Name one "
            "with --metric, or fewer runs."
        )
    return metrics[0]


def against(
    comparisons: Sequence[Comparison],
    what: str,
    out_png: str | Path,
    *,
    shown: Mapping[str, Look] | None = None,
) -> Path:
    """Draw mean and 95 % interval of each group; a line joins one name's points of all tables.

    Raises:
        ValueError: the tables have different metrics, or no run records the amount.
    """
    metric = one_metric(comparisons)
    over, lines = amounts(comparisons, what)
    if not lines:
        raise ValueError(f"--against {what}: no run says how many {over} it had.")
    title = ", ".join(table.title for table in comparisons)
    figure, axis = draw_lines(lines, metric=metric, over=over, title=title, shown=shown)
    _levels(axis, comparisons)
    if is_rate(metric):
        axis.set_ylim(0, min(1.02, 1.04 * axis.get_ylim()[1]))
    legend_below(figure)
    return save(figure, out_png)


def amounts(comparisons: Sequence[Comparison], what: str) -> tuple[str, dict[str, list[Point]]]:
    """The label of the x axis, and the points of each group whose amount is known."""
    over, amount = AGAINST[what]
    lines: dict[str, list[Point]] = {}
    for table in comparisons:
        for group in table.groups:
            x = amount(table, group)
            if x is not None:
                point = Point(x, group.mean, group.half_width or 0.0)
                lines.setdefault(group.name, []).append(point)
    return over, lines


def draw_lines(
    lines: Mapping[str, Sequence[Point]],
    *,
    metric: str,
    over: str,
    title: str,
    shown: Mapping[str, Look] | None = None,
    size: tuple[float, float] = (7.2, 4.6),
) -> tuple[Figure, Axes]:
    """A figure with a line for each name through its points, from left to right."""
    figure, (axis,) = new_figure(1, size=size, title=title)
    shown = shown or looks(lines)
    for name, points in lines.items():
        xs, means, half_widths = zip(*sorted(points), strict=True)
        drawn = axis.errorbar(
            xs, means, yerr=half_widths, capsize=3, lw=1.4, label=literal(name),
            **shown[name].style,
        )  # fmt: skip
        said = [
            f"{format_metric(metric, point.mean)} at {point.x:,.0f}" for point in sorted(points)
        ]
        hover(drawn.get_children(), f"{name}: {', '.join(said)}")
    everyone = [point for points in lines.values() for point in points]
    least, most = min(everyone).x, max(everyone).x
    if least > 0 and most > 5 * least:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if most < 150 * least else (1,)))
        axis.minorticks_off()
    axis.xaxis.set_major_formatter(EngFormatter())
    axis.set_xlabel(over)
    metric_along(axis.yaxis, metric)
    interval = " and 95 % interval" * any(point.half_width for point in everyone)
    axis.set_title(f"mean{interval} over seeds", fontsize=8, color=GREY)
    return figure, axis


def _levels(axis: Axes, comparisons: Sequence[Comparison]) -> None:
    """Lines for the baselines that are the same in all tables."""
    for kind, name, value in comparisons[0].baseline_rows():
        if all(table.baselines.get(kind) == value for table in comparisons):
            style, colour = level_style(kind)
            axis.axhline(value, color=colour, ls=style, lw=1.4, label=literal(name))
