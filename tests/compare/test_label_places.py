"""Names of points cover neither each other nor a marker, and lines lead to those that lie apart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from kora.compare.label_places import Box, overlap, place_labels, text_width

FRAME: Box = (66, 14, 544, 294)
NAMES = ["LinearProbe", "MultiLayerProbe", "KoRA", "KoRA-side", "LoRA + layers", "BitFit", "VPT"]


def layout(kind: str, seed: int = 0) -> list[tuple[float, float]]:
    draw = np.random.default_rng(seed)
    if kind == "one place":
        points = np.full((7, 2), [300.0, 150.0])
    elif kind == "a cluster":
        points = draw.normal([300, 150], [15, 6], (7, 2))
    elif kind == "corners":
        points = np.array(
            [[66, 14], [544, 14], [66, 294], [544, 294], [305, 14], [66, 150], [544, 150]]
        )
    else:
        points = draw.uniform([80, 25], [530, 285], (7, 2))
    return [(float(x), float(y)) for x, y in points]


@pytest.mark.parametrize("kind", ["one place", "a cluster", "corners", "spread"])
@pytest.mark.parametrize("seed", range(4))
def test_no_name_covers_a_name_or_a_marker_or_leaves_the_frame(kind: str, seed: int) -> None:
    points = layout(kind, seed)
    bars = [(x - 4, y - 25, x + 4, y + 25) for x, y in points] if kind == "spread" else []
    widths = [text_width(name) for name in NAMES]
    labels = place_labels(points, widths, height=14, frame=FRAME, obstacles=bars)
    for one, other in itertools.combinations(labels, 2):
        assert overlap(one.box, other.box) == 0
    for label in labels:
        for x, y in points:
            assert overlap(label.box, (x - 6, y - 6, x + 6, y + 6)) == 0
        assert label.box[0] >= FRAME[0]
        assert label.box[1] >= FRAME[1]
        assert label.box[2] <= FRAME[2]
        assert label.box[3] <= FRAME[3]


def test_a_name_that_lies_apart_is_led_to_and_one_beside_its_point_is_not() -> None:
    crowded = place_labels(layout("one place"), [80.0] * 7, height=14, frame=FRAME)
    assert sum(label.leader is not None for label in crowded) >= 3
    (alone,) = place_labels([(300, 150)], [80.0], height=14, frame=FRAME)
    assert alone.leader is None
    for label in crowded:
        if label.leader:
            x, y = label.leader[2:]
            assert label.box[0] <= x <= label.box[2]
            assert label.box[1] <= y <= label.box[3]


def test_a_wide_text_is_wider() -> None:
    assert text_width("WWWW") > 2 * text_width("iiii") > 0
    assert text_width("a$b$c") > text_width("abc"), "no mathematics"
