"""Claims about mAP of drawn images: equal to the metric of the same images, and fast."""

from __future__ import annotations

import time

import numpy as np
import pytest

from kora.analysis.average_precision import mean_ap
from kora.runs.outcomes import BoxOutcomes
from tests.support.detections import detections, kept_of, measured


def boxes_of(seed: int, **options: float) -> BoxOutcomes:
    boxes = kept_of(measured(*detections(seed, **options))).boxes
    assert boxes is not None
    return boxes


def test_a_weight_counts_an_image_as_often() -> None:
    predictions, truths = detections(0)
    boxes = kept_of(measured(predictions, truths)).boxes
    weights_BI = np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12), size=4)
    found = mean_ap([boxes])(weights_BI)
    for weights_I, value in zip(weights_BI, found, strict=True):
        drawn = np.repeat(np.arange(12), weights_I)
        again = measured([predictions[i] for i in drawn], [truths[i] for i in drawn])
        assert value == pytest.approx(float(again.compute()["map"]), abs=1e-6)


def test_images_of_two_tables_are_those_of_one() -> None:
    (predictions, truths), (others, _) = detections(1, noise=3), detections(1, noise=12, boxes=20)
    one, other = (kept_of(measured(found, truths)).boxes for found in (predictions, others))
    swapped = np.arange(12) % 3 == 0
    mixed = [others[i] if swapped[i] else predictions[i] for i in range(12)]
    value = mean_ap([one, other])(np.concatenate([~swapped, swapped])[None])
    assert value[0] == pytest.approx(float(measured(mixed, truths).compute()["map"]), abs=1e-6)


def test_a_class_without_a_true_box_in_the_draw_does_not_count() -> None:
    boxes = BoxOutcomes(
        score=np.array([[0.9], [0.8]], dtype=np.float32),
        classes=np.array([[0], [1]]),
        hits=np.array([[1023], [0]]),
        ignored=np.zeros((2, 1), dtype=int),
        true=np.array([[1, 0], [0, 1]]),
    )
    assert mean_ap([boxes])(np.array([[1, 1], [2, 0], [0, 1], [0, 0]])) == pytest.approx(
        [0.5, 1, 0, 0]
    )


@pytest.mark.parametrize("true", [7, 100, 350])
def test_every_level_of_recall_is_reached_by_the_hits_that_coco_says(true: int) -> None:
    # One class; all boxes are hits, so AP is the number of levels reached.
    for hits in range(1, true, 3):
        boxes = BoxOutcomes(
            score=np.ones((1, hits), dtype=np.float32),
            classes=np.zeros((1, hits), dtype=int),
            hits=np.full((1, hits), 1),
            ignored=np.zeros((1, hits), dtype=int),
            true=np.array([[true]]),
        )
        levels = np.searchsorted(np.linspace(0, 1, 101), hits / true, side="right")
        found = mean_ap([boxes], thresholds=[0])(np.ones((1, 1)))[0]
        assert round(found * 101, 6) == levels, hits


def test_a_thousand_draws_of_a_hundred_images_take_less_than_three_seconds() -> None:
    boxes = boxes_of(0, images=100, boxes=100)
    weights_BI = np.random.default_rng(0).multinomial(100, np.full(100, 0.01), size=1000)
    began = time.process_time()
    found = mean_ap([boxes])(weights_BI)
    assert time.process_time() - began < 3
    assert found.std() > 0
