"""Pictures of a search: the value of each trial against each option.

Not `optuna.visualization.matplotlib.plot_slice`: it leaves failed trials out, does not mark the
best, shows only the tried part of a range, and changes pyplot's style for later pictures (5.0).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from kora.console.formats import format_metric, is_rate
from kora.grid.file import as_text
from kora.reports.canvas import BLUE, GREY, ORANGE, PERCENT, RED, literal, new_figure, save
from kora.tune.file import Dimension
from kora.tune.study import Search, Trial

__all__ = ["trial_pictures"]

_A_PICTURE = 8  # combinations in a picture; more go into further files


def trial_pictures(searches: Sequence[Search], out_png: Path) -> list[Path]:
    """Draw a row for each combination and a column for each option.

    The best trial is a diamond, a failed one a cross. After eight combinations, a new file begins:
    `NAME_2.png` and so on.
    """
    options = list(dict.fromkeys(d.option for s in searches for d in s.combination.space))
    written = []
    for first in range(0, len(searches), _A_PICTURE):
        number = first // _A_PICTURE + 1
        name = out_png.name if number == 1 else f"{out_png.stem}_{number}{out_png.suffix}"
        some = searches[first : first + _A_PICTURE]
        written.append(_picture(some, options, out_png.with_name(name)))
    return written


def _picture(searches: Sequence[Search], options: Sequence[str], out_png: Path) -> Path:
    metrics = dict.fromkeys(search.combination.metric for search in searches)
    figure, axes = new_figure(
        len(options), rows=len(searches), size=(3.0 * len(options) + 0.8, 2 * len(searches) + 0.7),
        title=f"Trials by {', '.join(metrics)} (diamond: best, cross: failed)",
    )  # fmt: skip
    for row, search in enumerate(searches):
        mine = {one.option: one for one in search.searched}
        limits = _limits(search)
        for column, option in enumerate(options):
            axis = axes[row * len(options) + column]
            if option not in mine:
                axis.text(
                    0.5, 0.5, "not searched", ha="center", va="center", color=GREY, fontsize=8,
                    transform=axis.transAxes,
                )  # fmt: skip
                axis.set(xticks=[], yticks=[])
            else:
                _panel(axis, search, mine[option], limits)
            axis.tick_params(labelsize=7)
            axis.set_xlabel(literal(option.removeprefix("model.")), fontsize=8)
            if column == 0:
                axis.set_ylabel(literal(_wrapped(search.combination.name)), fontsize=8)
    return save(figure, out_png)


def _panel(axis: Axes, search: Search, one: Dimension, limits: tuple[float, float]) -> None:
    trials, best = search.trials(), search.best()
    places = {trial.number: _place(one, trial.values[one.option]) for trial in trials
              if one.option in trial.values}  # fmt: skip
    if one.choices:
        axis.set_xticks(range(len(one.choices)), [literal(as_text(c)) for c in one.choices])
        axis.set_xlim(-0.5, len(one.choices) - 0.5)
    else:
        if one.log:
            axis.set_xscale("log")
        margin = 0.04
        drawn = places.values()  # failed ones may lie beyond
        low, high = min([float(one.low), *drawn]), max([float(one.high), *drawn])
        ratio = (high / low) ** margin if one.log else 1.0
        span = (high - low) * margin
        axis.set_xlim(*((low / ratio, high * ratio) if one.log else (low - span, high + span)))
    axis.set_ylim(*limits)
    if is_rate(search.combination.metric):
        axis.yaxis.set_major_formatter(PERCENT)
    axis.yaxis.set_major_locator(MaxNLocator(4))
    axis.grid(alpha=0.25)
    _points(axis, places, [t for t in trials if t.value is not None and t != best], BLUE, "o")
    failed = [t._replace(value=limits[0]) for t in trials if t.state == "failed"]
    _points(axis, places, failed, RED, "x")
    if best is not None:
        _points(axis, places, [best], ORANGE, "D")
        axis.set_title(
            format_metric(search.combination.metric, best.value), fontsize=8, loc="right"
        )


def _points(
    axis: Axes, places: dict[int, float], trials: Sequence[Trial], colour: str, marker: str
) -> None:
    drawn = [trial for trial in trials if trial.number in places]
    more: dict[str, Any] = {} if marker == "x" else {"edgecolors": "black", "linewidths": 0.5}
    axis.scatter(
        [places[trial.number] for trial in drawn], [trial.value or 0.0 for trial in drawn],
        color=colour, marker=marker, s=26, clip_on=False, zorder=3, **more,
    )  # fmt: skip


def _place(one: Dimension, value: Any) -> float:
    return float(one.choices.index(value)) if one.choices else float(value)


def _limits(search: Search) -> tuple[float, float]:
    values = [trial.value for trial in search.trials() if trial.value is not None] or [0.0, 1.0]
    low, high = min(values), max(values)
    margin = 0.12 * (high - low) or 0.05 * abs(high) or 0.05
    return low - margin, high + margin


def _wrapped(name: str) -> str:
    """A name in lines of about 22 letters, broken at spaces and underscores."""
    lines = [""]
    for word in name.replace("_", "_ ").replace(", ", ",  ").split(" "):
        if len(lines[-1]) + len(word) > 22:
            lines.append("")
        lines[-1] += word if word else " "
    return "\n".join(line.strip() for line in lines)
