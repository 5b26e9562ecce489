"""The pictures of `kora compare --against`: a metric over what it was had for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kora.compare.comparison import Comparison, Group
from kora.console.formats import is_rate, named_metric
from kora.console.identity import Look, looks
from kora.reports.canvas import GREY, PERCENT, level_style, literal, new_figure, save

__all__ = ["AGAINST", "Point", "against", "draw_lines"]

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
    """A mean, and half of its 95 % interval, that was had for x."""

    x: float
    mean: float
    half_width: float


def against(
    comparisons: Sequence[Comparison],
    what: str,
    out_png: str | Path,
    *,
    shown: Mapping[str, Look] | None = None,
) -> Path:
    """Mean and 95 % interval of each group; a line joins those of one name from several tables.

    Args:
        comparisons: Tables of one metric.
        what: One of `AGAINST`.
        out_png: The picture.
        shown: Colour and marker of each group; None: those of the groups alone.

    Raises:
        ValueError: the tables are of different metrics, or no run says how much of it there was.
    """
    label, amount = AGAINST[what]
    metrics = sorted({table.metric for table in comparisons})
    if len(metrics) != 1:
        raise ValueError(
            f"--against draws one metric, and the tables are of {' and '.join(metrics)}. Name one "
            "with --metric, or fewer runs."
        )
    lines: dict[str, list[Point]] = {}
    for table in comparisons:
        for group in table.groups:
            x = amount(table, group)
            if x is not None:
                point = Point(x, group.mean, group.half_width or 0.0)
                lines.setdefault(group.name, []).append(point)
    if not lines:
        raise ValueError(f"--against {what}: no run says how many {label} it had.")
    title = ", ".join(table.title for table in comparisons)
    figure, axis = draw_lines(lines, metric=metrics[0], over=label, title=title, shown=shown)
    _levels(axis, comparisons)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return save(figure, out_png)


def draw_lines(
    lines: Mapping[str, Sequence[Point]],
    *,
    metric: str,
    over: str,
    title: str,
    shown: Mapping[str, Look] | None = None,
) -> tuple[Figure, Axes]:
    """A figure with a line for each name through its points, from left to right."""
    figure, (axis,) = new_figure(1, size=(7.2, 4.6), title=title)
    shown = shown or looks(lines)
    for name, points in lines.items():
        look = shown[name]
        xs, means, half_widths = zip(*sorted(points), strict=True)
        axis.errorbar(
            xs, means, yerr=half_widths,
            fmt=f"{look.sign}-",
            color=look.hex, ms=6, capsize=3, lw=1.4, label=literal(name),
        )  # fmt: skip
    amounts = [point.x for points in lines.values() for point in points]
    if min(amounts) > 0 and max(amounts) > 5 * min(amounts):
        axis.set_xscale("log")
    axis.set_xlabel(over)
    axis.set_ylabel(named_metric(metric))
    if is_rate(metric):
        axis.yaxis.set_major_formatter(PERCENT)
        axis.set_ylim(0, 1.04 * axis.get_ylim()[1])
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title("mean and 95 % interval over seeds", fontsize=8, color=GREY)
    return figure, axis


def _levels(axis: Axes, comparisons: Sequence[Comparison]) -> None:
    """Lines for what scores without learning, where it is the same in all tables."""
    for kind, name, value in comparisons[0].baseline_rows():
        if all(table.baselines.get(kind) == value for table in comparisons):
            style, colour = level_style(kind)
            axis.axhline(value, color=colour, ls=style, lw=1.4, label=name)
