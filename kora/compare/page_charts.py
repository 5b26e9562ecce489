"""The charts of the page that `kora compare` writes, as SVG inside of it.

Colours and marks are those of `kora.console.identity`. The colours themselves come from the style
sheet of the page, which has other ones for a dark screen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

from kora.compare.comparison import Comparison
from kora.compare.label_places import Box, place_labels, text_width
from kora.console.formats import format_metric, is_rate, named_metric
from kora.console.identity import MARKERS, Look, looks
from kora.reports.curves import Curve

__all__ = ["Tested", "curve_chart", "mark", "size_chart"]

_WIDTH, _HEIGHT = 560, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 16, 14, 46
_TEXT = 12  # pixels

Tested = tuple[int, float]  # the step of the tested weights, and the value of the test


class _Axis(NamedTuple):
    """Where a value lies, in pixels, and which values have a line."""

    place: Callable[[float], float]
    ticks: list[tuple[float, str]]


def size_chart(comparison: Comparison, shown: Mapping[str, Look] | None = None) -> str | None:
    """The metric of each group with its interval, against what trains; None where that is unknown.

    The number of trainable parameters is on a logarithmic axis.
    """
    groups = [(g, g.trainable) for g in comparison.groups if g.trainable]
    if not groups:
        return None
    shown = shown or looks(group.name for group in comparison.groups)
    halves = [group.half_width or 0.0 for group, _ in groups]
    lows = [group.mean - half for (group, _), half in zip(groups, halves, strict=True)]
    highs = [group.mean + half for (group, _), half in zip(groups, halves, strict=True)]
    x = _log_axis([size for _, size in groups if size])
    y = _axis([*lows, *highs], comparison.metric, (_HEIGHT - _BOTTOM, _TOP))
    body, points, names, bars = [], [], [], []
    for (group, size), low, high in zip(groups, lows, highs, strict=True):
        look = shown[group.name]
        at, middle = x.place(size), y.place(group.mean)
        points.append((at, middle))
        names.append(group.name)
        if high > low:
            bars.append((at - 4, y.place(high), at + 4, y.place(low)))
        value = format_metric(comparison.metric, group.mean)
        line = f"M{at:.1f} {y.place(low):.1f}V{y.place(high):.1f}"
        caps = "".join(f"M{at - 4:.1f} {y.place(v):.1f}h8" for v in (low, high))
        body.append(
            f'<g class="c{look.colour}"><title>{escape(group.name)}: {value}, {size:,} '
            f'trainable</title><path d="{line}{caps}"/>{_mark(look, at, middle)}</g>'
        )
    labels = _labels(points, names, bars)
    return _chart(x, y, [*body, *labels], "trainable parameters", named_metric(comparison.metric))


def curve_chart(
    curves: Mapping[str, Sequence[Curve]],
    metric: str,
    shown: Mapping[str, Look] | None = None,
    *,
    tested: Mapping[str, Sequence[Tested]] | None = None,
) -> str | None:
    """A metric over the optimiser's steps: each seed faint, the mean of a group's seeds strong.

    Args:
        curves: steps and values of each seed, by group.
        metric: what they show.
        shown: colour and mark of each group; None: those of the groups alone.
        tested: where the tested weights of each seed stand, and the value of the test: a diamond.

    None where there is no curve. The mean is drawn where all seeds of a group have a value.
    """
    drawn = {name: seeds for name, seeds in curves.items() if seeds}
    tested = {name: points for name, points in (tested or {}).items() if name in drawn}
    values = [v for seeds in drawn.values() for _, ys in seeds for v in ys if math.isfinite(v)]
    if not values:
        return None
    shown = shown or looks(curves)
    values += [value for points in tested.values() for _, value in points]
    last = max(step for seeds in drawn.values() for steps, _ in seeds for step in steps)
    x = _axis([0.0, float(max(last, 1))], "steps", (_LEFT, _WIDTH - _RIGHT))
    y = _axis(values, metric, (_HEIGHT - _BOTTOM, _TOP))
    body = []
    for name, seeds in drawn.items():
        look = shown[name]
        lines = [f'<path class="seed" d="{_path(curve, x, y)}"/>' for curve in seeds[:50]]
        mean = _mean(seeds)
        dash = " ".join(map(str, look.dash))
        lines.append(f'<path class="mean" stroke-dasharray="{dash}" d="{_path(mean, x, y)}"/>')
        few = len(mean[0]) <= 40  # a mark for each value, while they can be told apart
        marked = zip(*mean, strict=True) if few else []
        lines += [_mark(look, x.place(s), y.place(v)) for s, v in marked if math.isfinite(v)]
        lines += [
            f'<path class="tested" transform="translate({x.place(s):.1f} {y.place(v):.1f})" '
            'd="M0 -6L6 0L0 6L-6 0z"/>'
            for s, v in tested.get(name, ())
        ]
        title = f"<title>{escape(name)}</title>"
        body.append(f'<g class="c{look.colour}">{title}{"".join(lines)}</g>')
    return _chart(x, y, body, "optimiser step", named_metric(metric))


def mark(look: Look) -> str:
    """The mark of a group as a small SVG for a legend."""
    dash = " ".join(map(str, look.dash))
    return (
        f'<svg class="key c{look.colour}" viewBox="0 0 28 12" aria-hidden="true">'
        f'<path class="mean" stroke-dasharray="{dash}" d="M1 6H27"/>{_mark(look, 14, 6)}</svg>'
    )


_SHAPES = {
    "o": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0",
    "s": "M-4 -4h8v8h-8z",
    "D": "M0 -5.5L5.5 0L0 5.5L-5.5 0z",
    "^": "M0 -5L5 4H-5z",
    "v": "M0 5L5 -4H-5z",
    "P": "M-2 -5h4v3h3v4h-3v3h-4v-3h-3v-4h3z",
    "X": "M-5 -3L-3 -5L0 -2L3 -5L5 -3L2 0L5 3L3 5L0 2L-3 5L-5 3L-2 0z",
}
assert set(_SHAPES) == set(MARKERS)


def _mark(look: Look, x: float, y: float) -> str:
    shape = _SHAPES[look.sign]
    return f'<path class="mark" transform="translate({x:.1f} {y:.1f})" d="{shape}"/>'


def _chart(x: _Axis, y: _Axis, body: Iterable[str], below: str, beside: str) -> str:
    right, floor = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    lines = [
        f'<svg class="chart" role="img" viewBox="0 0 {_WIDTH} {_HEIGHT}">',
        f"<title>{escape(beside)} against {escape(below)}</title>",
    ]
    for value, text in y.ticks:
        at = y.place(value)
        lines.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{right}"/>')
        lines.append(f'<text x="{_LEFT - 7}" y="{at + 4:.1f}" text-anchor="end">{text}</text>')
    for value, text in x.ticks:
        at = x.place(value)
        lines.append(f'<path class="grid" d="M{at:.1f} {_TOP}V{floor}"/>')
        lines.append(f'<text x="{at:.1f}" y="{floor + 18}" text-anchor="middle">{text}</text>')
    lines.append(f'<path class="frame" d="M{_LEFT} {_TOP}V{floor}H{right}"/>')
    middle = (_LEFT + right) / 2
    lines.append(f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{below}</text>')
    turned = f'transform="translate(14 {(_TOP + floor) / 2}) rotate(-90)"'
    lines.append(f'<text {turned} text-anchor="middle">{escape(beside)}</text>')
    return "\n".join([*lines, *body, "</svg>"])


def _axis(values: Sequence[float], metric: str, pixels: tuple[float, float]) -> _Axis:
    """A linear axis around the values, with about five round ticks."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = (low, high) if metric == "steps" else (low - room, high + room)
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(s for s in (1, 2, 5, 10) if s * power >= raw * 0.999)
    if metric == "steps":
        step = max(1.0, step)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    start, end = pixels

    def place(value: float) -> float:
        return start + (value - low) / (high - low) * (end - start)

    return _Axis(place, [(k * step, _tick(k * step, metric)) for k in range(first, last + 1)])


def _log_axis(sizes: Sequence[int]) -> _Axis:
    """A logarithmic axis with ticks at 1, 2 and 5 of each power, or at powers where it is long."""
    low, high = math.log10(min(sizes)), math.log10(max(sizes))
    room = max(0.12 * (high - low), 0.15)
    low, high = low - room, high + room
    factors = (1, 2, 5) if high - low < 2.2 else (1,)
    found = [f * 10**p for p in range(math.floor(low), math.ceil(high) + 1) for f in factors]

    def place(value: float) -> float:
        return _LEFT + (math.log10(value) - low) / (high - low) * (_WIDTH - _RIGHT - _LEFT)

    return _Axis(place, [(v, _count(v)) for v in found if low <= math.log10(v) <= high])


def _tick(value: float, metric: str) -> str:
    if is_rate(metric):
        return f"{100 * value:.4g} %".replace("-", "−")
    return (f"{value:,.0f}" if metric == "steps" else f"{value:.4g}").replace("-", "−")


def _count(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"


def _path(curve: Curve, x: _Axis, y: _Axis) -> str:
    """A line through the values; one that is not finite leaves a gap."""
    words, pen = [], "M"
    for step, value in zip(*curve, strict=True):
        if math.isfinite(value):
            words.append(f"{pen}{x.place(step):.1f} {y.place(value):.1f}")
        pen = "L" if math.isfinite(value) else "M"
    return "".join(words)


def _mean(seeds: Sequence[Curve]) -> Curve:
    tables = [dict(zip(*curve, strict=True)) for curve in seeds]
    steps = sorted(set.intersection(*(set(table) for table in tables)))
    return steps, [sum(table[step] for table in tables) / len(tables) for step in steps]


def _labels(
    points: Sequence[tuple[float, float]], names: Sequence[str], bars: Sequence[Box]
) -> list[str]:
    """A name beside each point; a line leads to one that lies apart."""
    frame = (_LEFT + 2, float(_TOP), _WIDTH - 2.0, float(_HEIGHT - _BOTTOM))
    widths = [text_width(name, _TEXT) for name in names]
    placed = place_labels(points, widths, height=14, frame=frame, obstacles=bars)
    lines = []
    for name, label in zip(names, placed, strict=True):
        if label.leader is not None:
            x0, y0, x1, y1 = label.leader
            lines.append(f'<path class="leader" d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}"/>')
        left, _, _, bottom = label.box
        lines.append(f'<text x="{left:.1f}" y="{bottom - 3:.1f}">{escape(name)}</text>')
    return lines
