"""Claims about scores of summed areas: their interval covers, and their test holds its level."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from kora.analysis.pooled import (
    SCORES,
    mean_iou,
    pixel_accuracy,
    pooled_difference,
    pooled_interval,
)
from kora.analysis.statistics import crossed_bootstrap
from kora.metrics import areas as of_torch
from tests.support.detections import detections, kept_of, measured
from tests.support.segmentation import areas


def test_scores_equal_those_of_the_metrics() -> None:
    summed = areas(np.random.default_rng(0), 0.7)[0].sum(axis=0)
    summed = np.concatenate([summed, np.zeros((3, 2), int)], axis=1)  # classes that never occur
    assert float(mean_iou(summed)) == pytest.approx(
        float(of_torch.mean_iou(torch.from_numpy(summed)))
    )
    assert float(pixel_accuracy(summed)) == pytest.approx(summed[0].sum() / summed[2].sum())


def test_it_is_the_usual_bootstrap_where_the_score_is_a_mean_over_images() -> None:
    generator = np.random.default_rng(0)
    first, second = (areas(generator, right) for right in (0.7, 0.6))
    for one in (first, second):  # images of one size, so that pixel accuracy is a mean
        one[:, :, 2] = 100
    found = pooled_difference(first, second, SCORES["pixel_accuracy"])
    each = (first[:, :, 0] - second[:, :, 0]).sum(axis=-1) / 300
    assert found.bootstrap == pytest.approx(crossed_bootstrap(each), abs=2e-3)
    assert found.image_std == pytest.approx(each.mean(axis=0).std(), rel=0.05)


def test_a_clear_difference_has_a_small_p_and_none_a_large_one() -> None:
    generator = np.random.default_rng(1)
    better, worse = (areas(generator, right) for right in (0.8, 0.7))
    clear = pooled_difference(better, worse, replace(SCORES["miou"], resamples=2000))
    assert clear.p < 0.005
    assert 0 < clear.bootstrap[0] < clear.bootstrap[1]
    equal = pooled_difference(better, better, replace(SCORES["miou"], resamples=200))
    assert equal.p == 1
    assert equal.bootstrap == (0, 0)


def test_the_test_holds_its_level_under_the_null() -> None:
    generator, score = np.random.default_rng(2), replace(SCORES["miou"], resamples=200)
    p = [
        pooled_difference(
            areas(generator, 0.7, images=30, seeds=1),
            areas(generator, 0.7, images=30, seeds=1),
            score,
        ).p
        for _ in range(300)
    ]
    assert 0.02 < np.mean(np.array(p) <= 0.05) < 0.09


def test_of_boxes_the_draws_are_of_images_and_the_exchange_is_of_models() -> None:
    better, worse = (
        [kept_of(measured(*detections(3, images=40, noise=pixels))).boxes] for pixels in (4, 6)
    )
    score = replace(SCORES["map"], resamples=500)
    found = pooled_difference(better, worse, score)
    assert 0 < found.bootstrap[0] < found.bootstrap[1]
    assert found.p < 0.01
    back = pooled_difference(worse, better, score)
    assert back.bootstrap == pytest.approx((-found.bootstrap[1], -found.bootstrap[0]))
    assert pooled_difference(better, better, score).p == 1
    low, high = pooled_interval(better[0], score)
    assert low < score.value(better[0]) < high
