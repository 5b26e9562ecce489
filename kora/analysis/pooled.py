"""Statistics of scores that are no mean over images: they follow from areas summed over all images.

Images are drawn, or the two models exchanged on them, and the areas are summed anew each time.

Shapes: S seeds, I images, K classes, B resamples
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kora.analysis.statistics import RESAMPLES

__all__ = [
    "SCORES",
    "PooledDifference",
    "mean_iou",
    "pixel_accuracy",
    "pooled_difference",
    "pooled_interval",
]

Floats = NDArray[np.float64]
_AT_ONCE = 20_000_000  # numbers at a time, which bounds the memory


def mean_iou(areas_3K: NDArray[Any]) -> Floats:
    """From areas (..., 3, K) of overlap, prediction and truth: the mean over classes that occur."""
    overlap, predicted, true = (areas_3K[..., row, :].astype(np.float64) for row in range(3))
    union = predicted + true - overlap
    occurs = union > 0
    iou = np.divide(overlap, union, out=np.zeros_like(union), where=occurs)
    means: Floats = iou.sum(axis=-1) / np.maximum(occurs.sum(axis=-1), 1)
    return means


def pixel_accuracy(areas_3K: NDArray[Any]) -> Floats:
    """From areas (..., 3, K): the share of the pixels that are right."""
    right, pixels = areas_3K[..., 0, :].sum(axis=-1), areas_3K[..., 2, :].sum(axis=-1)
    share: Floats = right / np.maximum(pixels, 1)
    return share


#: Scores by the name of their metric.
SCORES: dict[str, Callable[[NDArray[Any]], Floats]] = {
    "miou": mean_iou,
    "pixel_accuracy": pixel_accuracy,
}


@dataclass(frozen=True)
class PooledDifference:
    """Of the difference of two groups: bootstrap interval, p-value, and spread over images.

    `image_std` is the standard error over images times the square root of their number, as it would
    be for a mean over images.
    """

    bootstrap: tuple[float, float]
    p: float
    image_std: float


def pooled_interval(
    areas_I3K: NDArray[Any],
    score: Callable[[NDArray[Any]], Floats],
    *,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """95 % bootstrap interval of the score of one run, over images drawn anew."""
    images = len(areas_I3K)
    flat_IN = areas_I3K.reshape(images, -1).astype(np.float64)
    generator, found = np.random.default_rng(0), []
    for start in range(0, resamples, 1000):
        size = min(1000, resamples - start)
        weights_BI = generator.multinomial(images, np.full(images, 1 / images), size=size)
        found.append(score((weights_BI @ flat_IN).reshape(size, *areas_I3K.shape[1:])))
    low, high = np.quantile(np.concatenate(found), [0.025, 0.975])
    return float(low), float(high)


def pooled_difference(
    first_SI3K: NDArray[Any],
    second_SI3K: NDArray[Any],
    score: Callable[[NDArray[Any]], Floats],
    *,
    resamples: int = RESAMPLES,
) -> PooledDifference:
    """Statistics of score(first) - score(second), the mean over seeds.

    The bootstrap draws seeds and images anew, each with replacement (crossed, as in
    `crossed_bootstrap`). The p-value is two-sided and exchanges the two models on random images,
    with all seeds: (1 + as extreme) / (1 + resamples).
    """
    seeds, images = first_SI3K.shape[:2]
    shape = first_SI3K.shape[2:]
    flat = [
        np.moveaxis(areas, 0, 1).reshape(images, -1).astype(np.float64)
        for areas in (first_SI3K, second_SI3K)
    ]

    def scores(summed_BN: NDArray[Any]) -> Floats:
        return score(summed_BN.reshape(len(summed_BN), seeds, *shape))

    generator = np.random.default_rng(0)
    observed = float((scores(flat[0].sum(0)[None]) - scores(flat[1].sum(0)[None])).mean())
    crossed, over_images = np.empty(resamples), np.empty(resamples)
    extreme = 0
    step = max(1, _AT_ONCE // max(images, flat[0].shape[1]))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        weights_BI = generator.multinomial(images, np.full(images, 1 / images), size=size)
        weights_BS = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=size)
        found_BS = scores(weights_BI @ flat[0]) - scores(weights_BI @ flat[1])
        crossed[start : start + size] = (weights_BS * found_BS).sum(axis=1) / seeds
        over_images[start : start + size] = found_BS.mean(axis=1)
        swapped_BI = generator.integers(0, 2, size=(size, images)).astype(np.float64)
        moved_BN = swapped_BI @ (flat[1] - flat[0])
        exchanged = scores(flat[0].sum(0) + moved_BN) - scores(flat[1].sum(0) - moved_BN)
        extreme += int((np.abs(exchanged.mean(axis=1)) >= abs(observed) * (1 - 1e-9)).sum())
    low, high = np.quantile(crossed, [0.025, 0.975])
    return PooledDifference(
        bootstrap=(float(low), float(high)),
        p=(1 + extreme) / (1 + resamples),
        image_std=float(over_images.std()) * math.sqrt(images),
    )
