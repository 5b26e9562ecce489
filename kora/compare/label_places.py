"""Where the names of points go in a picture, so that none covers another, a marker or a bar.

A greedy search over places around each point, the most crowded points first. (adjustText, which is
well kept, moves texts of matplotlib figures only; the charts of the page are SVG of its own, whose
colours follow the screen.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

__all__ = ["Box", "Label", "overlap", "place_labels", "text_width"]

Box = tuple[float, float, float, float]  # left, top, right, bottom; y grows downwards

_MARKER = 7.0  # half the side of what a marker takes
_GAP = 4.0  # between marker and name
_NEAR = 8.0  # a name farther off gets a line
_RADII = (0, 10, 20, 32, 46, 62, 80, 100, 125)


class Label(NamedTuple):
    """The box of a name, and the line that leads from its point where it lies apart."""

    box: Box
    leader: tuple[float, float, float, float] | None  # from the point, to the box


def place_labels(
    points: Sequence[tuple[float, float]],
    widths: Sequence[float],
    *,
    height: float,
    frame: Box,
    obstacles: Sequence[Box] = (),
) -> list[Label]:
    """A place for each name.

    Args:
        points: Where the markers stand.
        widths: Of the names.
        height: Of a name.
        frame: What no name may leave.
        obstacles: What else must not be covered, such as bars of intervals.
    """
    markers = [(x - _MARKER, y - _MARKER, x + _MARKER, y + _MARKER) for x, y in points]
    hard = [*markers, *obstacles]
    crowd = [sum(math.dist(p, other) < 90 for other in points) for p in points]
    taken: list[Box] = []
    lines: list[tuple[float, float, float, float]] = []
    found: dict[int, Label] = {}
    for number in sorted(range(len(points)), key=lambda k: (-crowd[k], points[k])):
        point = points[number]
        boxes = _candidates(point, widths[number], height)
        costs = [_cost(box, point, hard, taken, lines, frame) for box in boxes]
        # Of equal ones the first: to the right of its marker.
        best = min(zip(costs, range(len(boxes)), boxes, strict=True), key=_rounded)[2]
        leader = _leader(point, best)
        taken.append(best)
        lines += [leader] if leader else []
        found[number] = Label(best, leader)
    return [found[number] for number in range(len(points))]


def overlap(one: Box, other: Box) -> float:
    """The area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


@cache
def text_width(text: str, size: float = 12.0) -> float:
    """Of a text in DejaVu Sans, which is wider than the fonts of most screens."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    if not text.strip():
        return 0.0
    path = TextPath((0, 0), text.replace("$", r"\$"), size=size, prop=FontProperties("DejaVu Sans"))
    return float(path.get_extents().x1)


def _candidates(point: tuple[float, float], width: float, height: float) -> list[Box]:
    """Right, left, above and below the marker, then the same farther and farther off."""
    x, y = point
    side = _MARKER + _GAP
    boxes = []
    for radius in _RADII:
        steps = 1 if not radius else 12
        for step in range(steps):
            angle = 2 * math.pi * step / steps
            dx, dy = radius * math.cos(angle), radius * math.sin(angle)
            for left, top in (
                (x + side, y - height / 2),
                (x - side - width, y - height / 2),
                (x - width / 2, y - side - height),
                (x - width / 2, y + side),
            ):
                boxes.append((left + dx, top + dy, left + dx + width, top + dy + height))
    return boxes


def _rounded(candidate: tuple[float, int, Box]) -> tuple[float, int]:
    return round(candidate[0], 6), candidate[1]


def _cost(
    box: Box,
    point: tuple[float, float],
    hard: Sequence[Box],
    taken: Sequence[Box],
    lines: Sequence[tuple[float, float, float, float]],
    frame: Box,
) -> float:
    covered = sum(overlap(box, other) for other in hard)
    covered += sum(overlap(_wider(box), _wider(other)) for other in taken)
    out = max(frame[0] - box[0], 0) + max(frame[1] - box[1], 0)
    out += max(box[2] - frame[2], 0) + max(box[3] - frame[3], 0)
    mine = _leader(point, box)
    crossed = sum(_crosses(line, box) for line in lines)
    crossed += sum(_crosses(mine, _wider(other)) for other in taken) if mine else 0
    return 100 * out + 10 * covered + 60 * crossed + _distance(point, box)


def _wider(box: Box) -> Box:
    return box[0] - 2, box[1] - 1, box[2] + 2, box[3] + 1


def _nearest(point: tuple[float, float], box: Box) -> tuple[float, float]:
    return min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])


def _distance(point: tuple[float, float], box: Box) -> float:
    return max(math.dist(point, _nearest(point, box)), _MARKER + _GAP)


def _leader(point: tuple[float, float], box: Box) -> tuple[float, float, float, float] | None:
    end = _nearest(point, box)
    length = math.dist(point, end)
    if length <= _MARKER + _GAP + _NEAR:
        return None
    share = _MARKER / length  # from the edge of the marker
    return (
        point[0] + share * (end[0] - point[0]),
        point[1] + share * (end[1] - point[1]),
        end[0],
        end[1],
    )


def _crosses(line: tuple[float, float, float, float], box: Box) -> bool:
    """Whether a line passes through a box, looked at in 16 places."""
    x0, y0, x1, y1 = line
    return any(
        box[0] < x0 + k / 16 * (x1 - x0) < box[2] and box[1] < y0 + k / 16 * (y1 - y0) < box[3]
        for k in range(17)
    )
