"""The charts of the page that `kora compare` writes, as SVG inside of it.

Colours come from the style sheet of the page, which has other ones for a dark screen; each group
has a mark and a dash of its own as well, so that nothing hangs on colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

from kora.comparison import Comparison
from kora.curves import Curve
from kora.formats import format_metric, is_rate, named_metric

__all__ = ["COLOURS", "curve_chart", "mark", "size_chart"]

COLOURS = 8  # of the style sheet: .c0 to .c7
_DASHES = ("", "7 4", "2 3", "9 3 2 3")
_WIDTH, _HEIGHT = 560, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 16, 14, 46
_LETTER = 6.7  # pixels of a letter at 12 pixels, at most on average


_Box = tuple[float, float, float, float]  # left, top, right, bottom


class _Axis(NamedTuple):
    """Where a value lies, in pixels, and which values have a line."""

    place: Callable[[float], float]
    ticks: list[tuple[float, str]]


def size_chart(comparison: Comparison) -> str | None:
    """The metric of each group with its interval, against what trains; None where that is unknown.

    The number of trainable parameters is on a logarithmic axis.
    """
    groups = [(place, g, g.trainable) for place, g in enumerate(comparison.groups) if g.trainable]
    if not groups:
        return None
    halves = [group.half_width or 0.0 for _, group, _ in groups]
    lows = [group.mean - half for (_, group, _), half in zip(groups, halves, strict=True)]
    highs = [group.mean + half for (_, group, _), half in zip(groups, halves, strict=True)]
    x = _log_axis([size for *_, size in groups if size])
    y = _axis([*lows, *highs], comparison.metric, (_HEIGHT - _BOTTOM, _TOP))
    body, points, names, bars = [], [], [], []
    for (place, group, size), low, high in zip(groups, lows, highs, strict=True):
        assert size is not None
        at, middle = x.place(size), y.place(group.mean)
        points.append((at, middle))
        names.append(group.name)
        bars.append((at - 4, y.place(high), at + 4, y.place(low)))
        value = format_metric(comparison.metric, group.mean)
        line = f"M{at:.1f} {y.place(low):.1f}V{y.place(high):.1f}"
        caps = "".join(f"M{at - 4:.1f} {y.place(v):.1f}h8" for v in (low, high))
        body.append(
            f'<g class="c{place % COLOURS}"><title>{escape(group.name)}: {value}, {size:,} '
            f'trainable</title><path d="{line}{caps}"/>{_mark(place, at, middle)}</g>'
        )
    labels = _labels(points, names, bars)
    return _chart(x, y, [*body, *labels], "trainable parameters", named_metric(comparison.metric))


def curve_chart(
    curves: Mapping[str, Sequence[Curve]], metric: str, groups: Sequence[str]
) -> str | None:
    """A metric over the optimiser's steps: each seed faint, the mean of a group's seeds strong.

    Args:
        curves: steps and values of each seed, by group.
        metric: what they show.
        groups: all groups of the comparison, whose order gives colours.

    None where there is no curve. The mean is drawn where all seeds of a group have a value.
    """
    drawn = {name: seeds for name, seeds in curves.items() if seeds}
    values = [v for seeds in drawn.values() for _, ys in seeds for v in ys if math.isfinite(v)]
    if not values:
        return None
    last = max(step for seeds in drawn.values() for steps, _ in seeds for step in steps)
    x = _axis([0.0, float(max(last, 1))], "steps", (_LEFT, _WIDTH - _RIGHT))
    y = _axis(values, metric, (_HEIGHT - _BOTTOM, _TOP))
    body = []
    for name, seeds in drawn.items():
        place = groups.index(name)
        lines = [f'<path class="seed" d="{_path(curve, x, y)}"/>' for curve in seeds[:50]]
        mean = _mean(seeds)
        dash = _DASHES[place // COLOURS % len(_DASHES)]
        lines.append(f'<path class="mean" stroke-dasharray="{dash}" d="{_path(mean, x, y)}"/>')
        few = len(mean[0]) <= 40  # a mark for each value, while they can be told apart
        marked = zip(*mean, strict=True) if few else []
        lines += [_mark(place, x.place(s), y.place(v)) for s, v in marked if math.isfinite(v)]
        title = f"<title>{escape(name)}</title>"
        body.append(f'<g class="c{place % COLOURS}">{title}{"".join(lines)}</g>')
    return _chart(x, y, body, "optimiser step", named_metric(metric))


def mark(place: int) -> str:
    """The mark of a group by its place, as a small SVG for a legend."""
    dash = _DASHES[place // COLOURS % len(_DASHES)]
    return (
        f'<svg class="key c{place % COLOURS}" viewBox="0 0 28 12" aria-hidden="true">'
        f'<path class="mean" stroke-dasharray="{dash}" d="M1 6H27"/>{_mark(place, 14, 6)}</svg>'
    )


def _mark(place: int, x: float, y: float) -> str:
    shapes = (
        "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0",
        "M-4 -4h8v8h-8z",
        "M0 -5L5 4H-5z",
        "M0 -5.5L5.5 0L0 5.5L-5.5 0z",
        "M0 5L5 -4H-5z",
    )
    shape = shapes[place % len(shapes)]
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
    points: Sequence[tuple[float, float]], names: Sequence[str], bars: Sequence[_Box]
) -> list[str]:
    """A name beside each point: at the first of some places where it covers least."""
    taken = [(px - 7, py - 7, px + 7, py + 7) for px, py in points] + list(bars)
    lines = []
    for (px, py), name in zip(points, names, strict=True):
        width = _LETTER * len(name)
        places = [(dx, dy) for dy in (4, -9, 18, -23, 32, -37, 46) for dx in (11, -11 - width)]
        boxes = [(px + dx, py + dy - 11, px + dx + width, py + dy + 3) for dx, dy in places]
        box = min(boxes, key=lambda box: sum(_covered(box, other) for other in taken) + _out(box))
        taken.append(box)
        lines.append(f'<text x="{box[0]:.1f}" y="{box[3] - 3:.1f}">{escape(name)}</text>')
    return lines


def _covered(one: _Box, other: _Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)


def _out(box: _Box) -> float:
    """What of a box lies outside of the chart, weighed heavily."""
    sides = (_LEFT - box[0], _TOP - box[1], box[2] - _WIDTH + 2, box[3] - _HEIGHT + _BOTTOM)
    return 1000 * sum(max(side, 0) for side in sides)
