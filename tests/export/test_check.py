"""Claims about the comparison of an export with its run: what differs is noticed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kora.export.check import compared_boxes

BOXES = torch.tensor([[0.0, 0, 10, 20], [5, 5, 25, 15], [1, 1, 3, 3], [2, 0, 9, 4]])
SCORES = torch.tensor([0.9, 0.5, 0.3, 0.2])
LABELS = torch.tensor([0, 1, 1, 0])


def difference(boxes: Tensor, scores: Tensor, labels: Tensor) -> float:
    ours = [{"boxes": BOXES, "scores": SCORES, "labels": LABELS}]
    return compared_boxes(ours, (boxes[None], scores[None], labels[None]), least=0.05)[0]


def test_the_order_and_places_without_a_box_do_not_matter() -> None:
    order = torch.tensor([2, 0, 3, 1])
    assert difference(BOXES[order], SCORES[order], LABELS[order]) == 0
    padded = torch.cat([BOXES, torch.zeros(2, 4)])
    scores, labels = (torch.cat([x, torch.tensor([y, y])]) for x, y in ((SCORES, 0), (LABELS, -1)))
    assert difference(padded, scores, labels) == 0


def test_without_a_box_it_says_that_nothing_was_compared() -> None:
    none = (torch.zeros(1, 2, 4), torch.zeros(1, 2), torch.full((1, 2), -1))
    ours = [{"boxes": BOXES[:0], "scores": SCORES[:0], "labels": LABELS[:0]}]
    assert compared_boxes(ours, none, least=0.05) == (0, 0)


def test_a_box_a_score_or_a_class_that_differs_is_noticed() -> None:
    moved = BOXES.clone()
    moved[0, 2] += 1
    assert difference(moved, SCORES, LABELS) == pytest.approx(1 / 25)
    surer = SCORES + torch.tensor([0, 0.01, 0, 0])
    assert difference(BOXES, surer, LABELS) == pytest.approx(0.01)
    assert difference(BOXES, SCORES, 1 - LABELS) > 0.1


def test_a_missing_box_is_forgiven_only_near_the_lowest_score() -> None:
    near = torch.tensor([0.9, 0.5, 0.3, 0.2996])
    ours = [{"boxes": BOXES, "scores": near, "labels": LABELS}]
    assert compared_boxes(ours, [x[None, :3] for x in (BOXES, near, LABELS)], least=0.05)[0] == 0
    for kept in (3, 2, 0):
        assert difference(BOXES[:kept], SCORES[:kept], LABELS[:kept]) > 0.1


def test_one_box_in_ten_may_be_on_one_side_alone() -> None:
    """Which of two overlapping proposals of nearly the same score stays depends on rounding."""
    corners = torch.rand(60, 2, generator=torch.Generator().manual_seed(0)) * 100
    boxes = torch.cat([corners, corners + 10], dim=1)
    scores, labels = torch.linspace(0.9, 0.3, 60), torch.zeros(60, dtype=torch.long)
    ours = [{"boxes": boxes, "scores": scores, "labels": labels}]
    for moved, allowed in ((3, True), (12, False)):
        other = boxes.clone()
        other[10 : 10 + moved] += 30
        worst = compared_boxes(ours, (other[None], scores[None], labels[None]), least=0.05)[0]
        assert (worst == 0) == allowed
