"""The picture of a comparison: a dot per seed, means with intervals, baselines as lines."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kora.compare.comparison import Comparison
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

__all__ = ["comparison"]


def comparison(
    result: Comparison, out_png: str | Path, *, shown: Mapping[str, Look] | None = None
) -> Path:
    """Draw a dot per seed, mean and 95 % interval of each group, and baselines as lines.

    A hollow dot is a seed that not all groups have; the mean leaves it out. The verdict is at the
    right. If the groups are close together, the axis leaves out what is far from them; the legend
    marks such baselines as off the axis.
    """
    shown = shown or looks(group.name for group in result.groups)
    groups = result.groups[::-1]  # the best on top
    headline = textwrap.wrap(result.headline(), 85)  # the evaluation of depth makes it long
    size = (7.2, 1.75 + 0.15 * len(headline) + 0.5 * len(groups))
    figure, (axis,) = new_figure(1, size=size, title=result.title)
    hollow = False
    for row, group in enumerate(groups):
        look = shown[group.name]
        offsets = np.linspace(-0.16, 0.16, len(group.values)) if len(group.values) > 1 else [0.0]
        for seed, value, offset in zip(group.seeds, group.values, offsets, strict=True):
            counted = not result.common_seeds or seed in result.common_seeds
            hollow = hollow or not counted
            axis.plot(
                value, row + offset, "o", color=look.hex, alpha=0.6, ms=4,
                mfc=look.hex if counted else "none",
            )  # fmt: skip
        axis.errorbar(
            group.mean, row, xerr=group.half_width, fmt=look.sign, color=look.hex, ms=8,
            mec="black", mew=0.8, capsize=4, lw=1.8, zorder=4,
        )  # fmt: skip
    axis.plot([], [], "o", color=GREY, alpha=0.6, ms=4, label="one seed")
    if hollow:
        axis.plot([], [], "o", color=GREY, mfc="none", ms=4, label="seed that not all have")
    interval = ", 95 % interval" * any(group.half_width is not None for group in groups)
    axis.errorbar([], [], xerr=[], fmt="D", color=GREY, mec="black", ms=7, label=f"mean{interval}")
    limits = _limits(result)
    axis.set_xlim(limits)
    for kind, name, value in result.baseline_rows():
        style, colour = level_style(kind)
        label = literal(f"{name} {format_metric(result.metric, value)}")
        if limits[0] <= value <= limits[1]:
            axis.axvline(value, linestyle=style, color=colour, label=label, lw=1.5)
        else:
            axis.plot(
                [], [], linestyle=style, color=colour, label=f"{label} (off the axis)", lw=1.5
            )
    if result.reference is not None:
        for row, group in enumerate(groups):
            word = "reference" if group.name == result.reference else "–"
            word = group.verdict.word if group.verdict else word
            axis.annotate(
                word, (1.01, row), xycoords=("axes fraction", "data"), va="center", fontsize=8,
                color=GREY,
            )  # fmt: skip
    axis.set_yticks(range(len(groups)), [literal(group.name) for group in groups])
    axis.set_ylim(-0.6, len(groups) - 0.4)
    axis.set_title(literal("\n".join(headline)), fontsize=8, color=GREY)
    metric_along(axis.xaxis, result.metric)
    axis.grid(visible=False, axis="y")
    legend_below(figure)
    return save(figure, out_png)


def _limits(result: Comparison) -> tuple[float, float]:
    """Limits of the value axis: from zero with the baselines, or tight around close values."""
    ends = [v for group in result.groups for v in (*group.values, group.mean)]
    for group in result.groups:
        ends += [group.mean - (group.half_width or 0), group.mean + (group.half_width or 0)]
    low, high = min(ends), max(ends)
    everything = [*ends, *result.baselines.values(), *([0.0] if is_rate(result.metric) else [])]
    all_low, all_high = min(everything), max(everything)
    if high - low < 0.4 * (all_high - all_low):
        room = 0.12 * (high - low) or 0.05 * (all_high - all_low)
        return low - room, high + room
    room = 0.05 * (all_high - all_low) or 0.05 * abs(all_high) or 1.0
    left = all_low if all_low == 0 and is_rate(result.metric) else all_low - room
    return left, all_high + room
