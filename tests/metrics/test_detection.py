"""Claims about the metrics of detection: COCO's, of the whole set, exact in any batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kora.analysis.pooled import SCORES
from kora.metrics.detection import DetectionMetrics
from tests.support.detections import detections, kept_of, measured


def box(*sides: float, label: int = 0, crowd: bool = False) -> dict[str, Tensor]:
    """One true box at the origin, of a width and a height."""
    return {
        "boxes": torch.tensor([[0, 0, *sides]]).float(),
        "labels": torch.tensor([label]),
        "crowd": torch.tensor([crowd]),
    }


def guess(*sides: float, score: float = 0.5, label: int = 0) -> dict[str, Tensor]:
    """One predicted box at the origin."""
    found = box(*sides, label=label)
    return {"boxes": found["boxes"], "labels": found["labels"], "scores": torch.tensor([score])}


def joined(*parts: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def values(metrics: DetectionMetrics) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.compute().items()}


def test_the_value_is_the_known_one_where_it_can_be_worked_out_by_hand() -> None:
    # IoU is 0.75 exactly: six of ten thresholds. Two of three boxes are found, the first of all
    # and, after a wrong one, the third: precision 1 up to recall 1/3, 2/3 up to 2/3, then 0.
    truth = [box(40, 40), box(40, 40), box(40, 40)]
    found = [guess(40, 30, score=0.9), guess(4, 4, score=0.8), guess(40, 30, score=0.7)]
    expected = (34 * 1 + 33 * 2 / 3) / 101
    got = values(measured(found, truth))
    assert got["map_50"] == pytest.approx(expected)
    assert got["map_75"] == pytest.approx(expected)
    assert got["map"] == pytest.approx(0.6 * expected)
    assert got["mar_100"] == pytest.approx(0.6 * 2 / 3)
    assert got["map_medium"] == pytest.approx(0.6 * 67 / 101), "the wrong box is small"
    assert got["map_small"] != got["map_small"], "NaN: no true box is small"


def test_size_is_that_of_the_boxes_in_their_own_pixels() -> None:
    got = values(measured([guess(31, 31), guess(97, 97)], [box(31, 31), box(97, 97, label=0)]))
    assert (got["map_small"], got["map_large"]) == pytest.approx((1, 1))
    assert got["map_medium"] != got["map_medium"]


def test_it_is_of_all_images_together_and_not_the_mean_of_batches() -> None:
    predictions, truths = detections(1, images=12)
    whole, parts = measured(predictions, truths), DetectionMetrics(3)
    for some in (slice(0, 5), slice(5, 6), slice(6, 12)):
        parts.update(predictions[some], truths[some])
    assert values(parts) == values(whole)
    halves = [values(measured(predictions[s], truths[s]))["map"] for s in (slice(6), slice(6, 12))]
    assert abs(sum(halves) / 2 - values(whole)["map"]) > 0.005


def test_an_image_that_comes_twice_counts_once_and_order_does_not_matter() -> None:
    predictions, truths = detections(2, grid=True)
    order = [3, 11, 0, 3, 5, 1, 2, 4, 6, 7, 8, 9, 10, 0]
    again = measured(
        [predictions[i] for i in order], [truths[i] for i in order], index=torch.tensor(order)
    )
    once = measured(predictions, truths)
    assert values(again) == values(once)
    for name, column in once.per_image().items():
        assert torch.equal(again.per_image()[name], column), name


def test_what_lies_in_a_crowd_is_neither_right_nor_wrong() -> None:
    crowd = joined(box(50, 50), box(400, 50, crowd=True))
    lost = {**guess(40, 50, score=0.9), "boxes": torch.tensor([[100.0, 0, 140, 50]])}
    got = values(measured([joined(guess(50, 50), lost)], [crowd]))
    assert got["map"] == pytest.approx(1)
    alone = values(measured([joined(guess(50, 50), lost)], [box(50, 50)]))
    assert alone["map"] == pytest.approx(0.5)


def test_only_the_hundred_best_boxes_of_an_image_count() -> None:
    many = joined(*(guess(2, 2, score=0.9) for _ in range(100)), guess(50, 50, score=0.1))
    metrics = measured([many], [box(50, 50)])
    assert values(metrics)["map"] == 0
    assert metrics.per_image()["box_score"].shape == (1, 100)


def test_a_set_without_a_true_box_gives_nan_and_one_without_a_predicted_box_zero() -> None:
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}
    empty = measured([guess(9, 9)], [nothing])
    assert all(value != value for value in values(empty).values())
    assert empty.per_class().isnan().all()
    assert all(value != value for value in values(measured([], [])).values())
    assert values(measured([nothing | {"scores": torch.zeros(0)}], [box(9, 9)]))["map"] == 0


def test_ap_of_a_class_is_that_of_the_class_alone_and_their_mean_is_the_map() -> None:
    predictions, truths = detections(3)
    metrics = measured(predictions, truths, classes=4)
    alone = []
    for number in range(3):
        alone.append(
            values(
                measured(
                    [{k: v[p["labels"] == number] for k, v in p.items()} for p in predictions],
                    [{k: v[t["labels"] == number] for k, v in t.items()} for t in truths],
                )
            )["map"]
        )
    assert metrics.per_class()[:3].tolist() == pytest.approx(alone)
    assert metrics.per_class()[3].isnan(), "a class that never occurs"
    assert sum(alone) / 3 == pytest.approx(values(metrics)["map"], abs=1e-6)


@pytest.mark.parametrize("grid", [False, True])
def test_what_is_kept_of_each_image_gives_the_same_values(grid: bool) -> None:
    for seed in range(6):
        metrics = measured(*detections(seed, grid=grid), classes=4)
        boxes = kept_of(metrics).boxes
        for name in ("map", "map_50", "map_75"):
            expected = values(metrics)[name]
            assert SCORES[name].value(boxes) == pytest.approx(expected, abs=1e-6), (seed, name)
