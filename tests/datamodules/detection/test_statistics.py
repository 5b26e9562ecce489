"""Claims about statistics of boxes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from datamodules.detection.boxes import Boxes, own_boxes
from datamodules.detection.statistics import BoxStatistics


def boxes(rows: list[list[float]], *, crowd: list[bool] | None = None) -> Boxes:
    """A picture of 200 x 400 pixels with the boxes label, x1, y1, x2, y2."""
    labels = [int(row[0]) for row in rows]
    corners = [row[1:] for row in rows]
    return own_boxes(corners, labels=labels, size=(200, 400), name=str, crowd=crowd)


def collected(*pictures: Boxes) -> BoxStatistics:
    return BoxStatistics.of_boxes(pictures, num_classes=3, of_images=9)


def test_boxes_are_counted_by_class_and_size() -> None:
    found = collected(
        boxes([[0, 0, 0, 31, 33], [0, 0, 0, 32, 32], [2, 0, 0, 96, 96]]),
        boxes([[0, 0, 0, 400, 200], [2, -9, 0, 9, 9]], crowd=[True, False]),
        boxes([]),
    )
    assert (found.images, found.of_images, found.empty) == (3, 9, 1)
    assert found.boxes.tolist() == [2, 0, 2]
    assert found.images_with.tolist() == [1, 0, 2]
    assert found.frequency.tolist() == pytest.approx([2 / 3, 0, 2 / 3])
    assert (found.small, found.medium, found.large) == (2, 1, 1)
    assert (found.crowd, found.outside) == (1, 1)


def test_means_and_places_are_shares_of_the_picture() -> None:
    found = collected(boxes([[0, 40, 20, 80, 60]]), boxes([[0, 120, 60, 160, 100]]))
    assert found.mean_boxes[0].tolist() == pytest.approx([0.2, 0.2, 0.3, 0.4])
    assert np.isnan(found.mean_boxes[1:]).all()
    places = found.places[0]
    assert np.isnan(places[2:]).all()
    assert places[0].tolist() == pytest.approx([0.1, 0.1, 0.2, 0.3])
    assert places[1].tolist() == pytest.approx([0.3, 0.3, 0.4, 0.5])


def test_places_find_where_boxes_usually_are() -> None:
    generator = np.random.default_rng(0)
    corners = [(20, 20), (20, 120), (320, 20), (320, 120)]
    rows = []
    for x, y in corners * 50:
        dx, dy = generator.uniform(-5, 5, 2)
        rows.append([1, x + dx, y + dy, x + dx + 40, y + dy + 40])
    places = collected(boxes(rows)).places[1] * np.array([400, 200, 400, 200])
    for x, y in corners:
        near = np.abs(places[:, :2] - (x, y)).max(axis=1) < 5
        assert near.sum() == 2  # 8 places among 4 corners


def test_they_are_plain_in_json() -> None:
    plain = json.loads(json.dumps(collected(boxes([[0, 0, 0, 50, 50]])).to_dict(), allow_nan=False))
    assert plain["mean_boxes"] == [[0, 0, 0.125, 0.25], None, None]
    assert "places" not in plain


def test_no_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="no image"):
        collected()
