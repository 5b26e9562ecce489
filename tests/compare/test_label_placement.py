"""Names of points cover neither each other nor a marker, and lines lead to those that lie apart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kora.compare.label_placement import label_points

NAMES = ["LinearProbe", "MultiLayerProbe", "KoRA", "KoRA-side", "LoRA + layers", "BitFit", "VPT"]


def layout(kind: str, seed: int = 0) -> list[tuple[float, float]]:
    """In pixels of axes of 480 by 280."""
    draw = np.random.default_rng(seed)
    if kind == "one place":
        points = np.full((7, 2), [230.0, 140.0])
    elif kind == "a cluster":
        points = draw.normal([230, 140], [15, 6], (7, 2))
    elif kind == "corners":
        points = np.array([[0, 0], [480, 0], [0, 280], [480, 280], [240, 0], [0, 140], [480, 140]])
    else:
        points = draw.uniform([15, 10], [465, 270], (7, 2))
    return [(float(x), float(y)) for x, y in points]


def labelled(points: list[tuple[float, float]], half: float = 0.0) -> Axes:
    figure = Figure(figsize=(8, 5), dpi=72)
    axis = figure.add_axes((0.1, 0.1, 480 / 576, 280 / 360))
    axis.set(xlim=(0, 480), ylim=(0, 280))
    label_points(axis, {name: (*point, half) for name, point in zip(NAMES, points, strict=False)})
    return axis


@pytest.mark.parametrize("kind", ["one place", "a cluster", "corners", "spread"])
@pytest.mark.parametrize("seed", range(4))
def test_no_name_covers_a_name_or_a_marker_or_leaves_the_frame(kind: str, seed: int) -> None:
    points = layout(kind, seed)
    axis = labelled(points, half=20.0 if kind == "spread" else 0.0)
    boxes = [text.get_window_extent() for text in axis.texts]
    assert len(boxes) == 7
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    for box, (x, y) in itertools.product(boxes, axis.transData.transform(points)):
        assert not box.padded(5.9).contains(x, y)
    for box in boxes:
        assert (box.extents[:2] >= axis.bbox.extents[:2] - 0.01).all()
        assert (box.extents[2:] <= axis.bbox.extents[2:] + 0.01).all()


def test_a_name_that_lies_apart_is_led_to_and_one_beside_its_point_is_not() -> None:
    crowded = labelled(layout("one place"))
    point, boxes = np.array((287.6, 176.0)), [text.get_window_extent() for text in crowded.texts]
    far = [np.linalg.norm(point.clip(box.min, box.max) - point) for box in boxes]
    assert 2 <= sum(distance > 21 for distance in far) <= len(crowded.lines)
    assert len(crowded.lines) <= sum(distance > 17 for distance in far)
    assert not labelled([(230, 140)]).lines
    for line in crowded.lines:
        end = line.get_transform().transform(line.get_xydata())[-1]
        assert any(box.padded(4).contains(*end) for box in boxes)


def test_a_name_with_dollars_is_no_mathematics() -> None:
    figure = Figure()
    axis = figure.add_subplot()
    label_points(axis, {r"$\frac$": (0.5, 0.5, 0.0)})
    figure.draw_without_rendering()
