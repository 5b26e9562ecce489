"""Names of points in a picture, placed so that none covers another, a marker or a bar.

A greedy search over places around each point, the most crowded points first. A box is (left,
bottom, right, top), in pixels.

Shapes: K places for a name, M boxes that it should not cover, S samples of a line
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from kora.reports.canvas import GREY, literal

__all__ = ["label_points"]

_Array = NDArray[np.float64]
# In points of 1/72 inch:
_MARKER = 6.0  # half the side of a marker's box
_GAP = 3.0  # between marker and name
_NEAR = 8.0  # a name farther away gets a line
_CROWD = 80.0  # within which points are neighbours
_NEVER = 1e4  # cost of covering a pixel; a pixel of distance costs 1
_LOOKED_AT = 60  # cheapest places, whose lines are checked too
_WIDER = 1.04  # text may be wider on a screen than here, where hinting rounds letter widths
_ANGLES = np.linspace(0, 2 * np.pi, 12, endpoint=False)
_SHIFTS = np.array([(0.0, 0.0)] + [
    (radius * np.cos(angle), radius * np.sin(angle))
    for radius in (10, 20, 32, 46, 62, 80, 100, 125) for angle in _ANGLES
])  # fmt: skip


def label_points(axis: Axes, points: Mapping[str, tuple[float, float, float]]) -> None:
    """Write each name next to its point (x, y, half of its bar), with a line if it is far away.

    This freezes the layout of the figure.
    """
    figure = axis.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # lay out what is there,
    figure.set_layout_engine("none")  # and keep that layout
    unit, frame, to_axes = figure.dpi / 72, axis.bbox.extents, axis.transAxes.inverted()
    low, middle, high = (
        axis.transData.transform([(x, y + side * half) for x, y, half in points.values()])
        for side in (-1, 0, 1)
    )
    markers = np.hstack([middle - _MARKER * unit, middle + _MARKER * unit])
    taken = np.vstack([markers, np.hstack([low - 3 * unit, high + 3 * unit])])
    crowd = (np.linalg.norm(middle[:, None] - middle, axis=-1) < _CROWD * unit).sum(1)
    for place in sorted(range(len(points)), key=lambda k: (-crowd[k], *middle[k])):
        point, name = middle[place], literal([*points][place])
        text = axis.text(0, 0, name, fontsize=9, va="bottom", transform=axis.transAxes)
        boxes = _places(point, text.get_window_extent(), unit)
        ends = point.clip(boxes[:, :2], boxes[:, 2:])
        far = np.linalg.norm(ends - point, axis=1).clip(_MARKER * unit)
        starts = point + (ends - point) * (_MARKER * unit / far)[:, None]
        lines = _samples(starts, ends)
        led = far > (_MARKER + _GAP + _NEAR) * unit
        outside = (frame[:2] - boxes[:, :2]).clip(0) + (boxes[:, 2:] - frame[2:]).clip(0)
        cost = (_NEVER * (outside.sum(1) + _overlap(boxes, taken)) + far).round(6)
        few = cost.argsort(kind="stable")[:_LOOKED_AT]  # of equal ones the right first
        crossed = (led[few] * _overlap(lines[few], taken).sum(1)).round(6)
        best = few[(cost[few] + crossed).argmin()]
        text.set_position(tuple(to_axes.transform(boxes[best, :2])))
        taken = np.vstack([taken, boxes[best] + 2 * unit * np.array([-1, -1, 1, 1])])
        if led[best]:
            taken = np.vstack([taken, lines[best]])
            line = to_axes.transform([starts[best], ends[best]])
            axis.add_artist(Line2D(*line.T, transform=axis.transAxes, color=GREY, lw=0.8, zorder=1))


def _overlap(boxes: _Array, others: _Array) -> _Array:
    """The area of each box (..., 4) that the others (M, 4) cover."""
    sides = np.minimum(boxes[..., None, 2:], others[:, 2:]) - np.maximum(
        boxes[..., None, :2], others[:, :2]
    )
    area: _Array = sides.clip(0).prod(-1).sum(-1)
    return area


def _places(point: _Array, text: Bbox, unit: float) -> _Array:
    """(K, 4): right, left, above and below the marker, then the same farther and farther away."""
    width, height, side = _WIDER * text.width, text.height, (_MARKER + _GAP) * unit
    corners = np.array([
        (side, -height / 2), (-side - width, -height / 2), (-width / 2, side),
        (-width / 2, -side - height),
    ])  # fmt: skip
    lows = (point + unit * _SHIFTS[:, None] + corners).reshape(-1, 2)
    return np.hstack([lows, lows + np.array([width, height])])


def _samples(starts: _Array, ends: _Array) -> _Array:
    """(K, S, 4): small boxes along each line (K, 2)."""
    shares = np.linspace(0, 1, 16)[:, None]
    along = starts[:, None] + shares * (ends - starts)[:, None]
    return np.concatenate([along - 3, along + 3], axis=-1)
