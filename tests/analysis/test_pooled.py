"""Claims about scores of summed areas: their interval covers, and their test holds its level."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kora.analysis.pooled import mean_iou, pixel_accuracy, pooled_difference
from kora.analysis.statistics import crossed_bootstrap
from kora.metrics import areas as of_torch
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
    found = pooled_difference(first, second, pixel_accuracy)
    each = (first[:, :, 0] - second[:, :, 0]).sum(axis=-1) / 300
    assert found.bootstrap == pytest.approx(crossed_bootstrap(each), abs=2e-3)
    assert found.image_std == pytest.approx(each.mean(axis=0).std(), rel=0.05)


def test_a_clear_difference_has_a_small_p_and_none_a_large_one() -> None:
    generator = np.random.default_rng(1)
    better, worse = (areas(generator, right) for right in (0.8, 0.7))
    clear = pooled_difference(better, worse, mean_iou, resamples=2000)
    assert clear.p < 0.005
    assert 0 < clear.bootstrap[0] < clear.bootstrap[1]
    equal = pooled_difference(better, better, mean_iou, resamples=200)
    assert equal.p == 1
    assert equal.bootstrap == (0, 0)


def test_the_test_holds_its_level_under_the_null() -> None:
    generator = np.random.default_rng(2)
    p = [
        pooled_difference(
            areas(generator, 0.7, images=30, seeds=1),
            areas(generator, 0.7, images=30, seeds=1),
            mean_iou,
            resamples=200,
        ).p
        for _ in range(300)
    ]
    assert 0.02 < np.mean(np.array(p) <= 0.05) < 0.09
