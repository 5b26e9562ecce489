"""What all pictures share: figures without pyplot, colours, and atomic writing.

Drawn without pyplot: no window, no global state, the same on every machine. Colours are those of
Okabe and Ito (2008), which readers with any colour vision can tell apart, and no meaning depends
on colour alone.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from kora.console.formats import is_rate, named_metric
from kora.runs.durable import write_atomically

__all__ = [
    "BLUE",
    "DPI",
    "GREEN",
    "GREY",
    "LEVEL",
    "ORANGE",
    "PERCENT",
    "RED",
    "legend_below",
    "level_style",
    "literal",
    "metric_along",
    "new_figure",
    "save",
    "write_cells",
]

BLUE, GREEN, RED, ORANGE, GREY = "#0072B2", "#009E73", "#D55E00", "#E69F00", "#666666"
LEVEL = "#8A8C92"  # for the best baseline without learning
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.4g} %")
DPI = 130


def level_style(kind: str) -> tuple[str, str]:
    """Line style and colour of a baseline: dashed for the best without learning, else dotted.

    Greys, as colours belong to strategies.
    """
    return ("--", LEVEL) if kind in ("majority", "mean_map", "mode_map") else (":", GREY)


def literal(text: str) -> str:
    """A name escaped for matplotlib, which would read $...$ as mathematics."""
    return text.replace("$", r"\$")


def legend_below(figure: Figure) -> None:
    """Put the legend below the axes, in four columns, or in fewer where they are too wide."""
    for columns in (4, 3, 2, 1):
        legend = figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
        if legend.get_window_extent().width <= figure.bbox.width or columns == 1:
            return
        legend.remove()


def metric_along(side: Axis, metric: str) -> None:
    """Label an axis with a metric, a rate in per cent; removes the top and right spines."""
    side.set_label_text(literal(named_metric(metric)))
    if is_rate(metric):
        side.set_major_formatter(PERCENT)
    side.axes.grid(alpha=0.25)
    side.axes.spines[["top", "right"]].set_visible(False)


def new_figure(
    columns: int,
    *,
    size: tuple[float, float],
    title: str = "",
    rows: int = 1,
    widths: Sequence[float] | None = None,
    heights: Sequence[float] | None = None,
) -> tuple[Figure, list[Axes]]:
    """A figure of `size` inches, width by height, and its axes row by row.

    `widths` and `heights` are those of the columns and rows, relative to each other.
    """
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, width_ratios=widths, height_ratios=heights)
    if title:
        wrapped = textwrap.fill(literal(title), int(size[0] * 13))
        figure.suptitle(wrapped, fontsize=10)
    return figure, list(axes.flat)


def write_cells(axis: Axes, texts: Any, dark: Any, *, size: float) -> None:
    """Write a text into each cell of a heat map (R, S), white if `dark`; "" leaves it empty."""
    for (row, column), text in np.ndenumerate(np.asarray(texts)):
        if text:
            colour = "white" if dark[row, column] else "black"
            # It is inside the axes anyway, so the layout need not measure it.
            axis.text(
                column, row, text, ha="center", va="center", fontsize=size, color=colour,
                in_layout=False,
            )  # fmt: skip


def save(figure: Figure, out_png: str | Path, *, description: str | None = None) -> Path:
    """Write a figure as PNG, atomically; returns its path. A description is kept in the file."""
    layout = figure.get_layout_engine()
    if layout is not None:  # savefig would lay out twice, and draw twice
        layout.execute(figure)
        figure.set_layout_engine("none")
    # A third faster than Pillow's usual 6, and a tenth larger.
    quick = {"compress_level": 3}
    told = {} if description is None else {"Description": description}
    write = partial(FigureCanvasAgg(figure).print_png, pil_kwargs=quick, metadata=told)
    return write_atomically(out_png, write)
