"""Claims about which predicted box finds which true one: as COCO has it."""

from __future__ import annotations

import numpy as np
import pytest

from kora.metrics.boxes import THRESHOLDS, box_iou, match_boxes

ALL = (1 << len(THRESHOLDS)) - 1


def column(width: float, left: float = 0) -> list[float]:
    """A box of height 10: IoU of two that begin together is the share of their widths."""
    return [left, 0, left + width, 10]


def matched(
    boxes: list[list[float]], true: list[list[float]], crowd: list[bool] | None = None
) -> tuple[list[int], list[int]]:
    found = match_boxes(
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.zeros(len(boxes)),
        np.array(true, dtype=np.float32).reshape(-1, 4),
        np.zeros(len(true)),
        np.array(crowd or [False] * len(true), dtype=bool),
    )
    return found[0].tolist(), found[1].tolist()


def test_iou_is_over_the_union_and_in_a_crowd_over_the_box_alone() -> None:
    boxes, true = np.array([column(10)]), np.array([column(10, 5), column(40), column(5, 20)])
    iou = box_iou(boxes, true, np.array([False, True, False]))
    assert iou[0].tolist() == pytest.approx([5 / 15, 1, 0])


def test_a_threshold_is_reached_by_an_iou_that_equals_it() -> None:
    assert matched([column(7.5)], [column(10)])[0] == [0b111111]  # 0.50 to 0.75
    assert matched([column(7.4)], [column(10)])[0] == [0b011111]


def test_a_true_box_is_found_once_by_the_higher_score() -> None:
    hits, _ = matched([column(8), column(10)], [column(10)])
    assert hits == [0b1111111, ALL & ~0b1111111]  # the second gets what the first misses


def test_the_second_best_true_box_is_taken_if_the_best_is() -> None:
    hits, _ = matched([column(10), column(10)], [column(10), column(8)])
    assert hits == [ALL, 0b1111111]


def test_a_class_finds_only_its_own_boxes() -> None:
    box = np.array([column(10)])
    hits, _ = match_boxes(box, np.array([1]), box, np.array([2]), np.array([False]))
    assert hits.tolist() == [0]


def test_a_crowd_takes_any_number_of_boxes_but_only_what_is_left() -> None:
    boxes = [column(10), column(10, 30), column(10, 32), column(10, 500)]
    hits, ignored = matched(boxes, [column(60), column(10)], [True, False])
    assert hits == [ALL, 0, 0, 0]
    assert ignored == [0, ALL, ALL, 0]


def test_images_without_boxes_are_matched_too() -> None:
    assert matched([], [column(10)]) == ([], [])
    assert matched([column(10)], []) == ([0], [0])
