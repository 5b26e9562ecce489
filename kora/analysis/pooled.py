"""Statistics of scores that are no mean over images: of areas or boxes of all images together.

Images are drawn, or the two models exchanged on them, and the score is computed anew each time.

Shapes: S seeds, I images, K classes, B resamples
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kora.analysis.average_precision import mean_ap
from kora.analysis.statistics import RESAMPLES
from kora.runs.outcomes import Outcomes

__all__ = [
    "SCORES",
    "PooledDifference",
    "PooledScore",
    "mean_iou",
    "pixel_accuracy",
    "pooled_difference",
    "pooled_interval",
]

Floats = NDArray[np.float64]
Scores = Callable[[NDArray[Any]], Floats]  # from weights (B, I) of images to (B,)
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


@dataclass(frozen=True)
class PooledScore:
    """A score of a set of images.

    Args:
        kept: What the outcomes of a run must hold, in words.
        table: Takes it from the outcomes; None if they lack it.
        of: From tables of images to a function, which gives the score for weights (B, I) of the
            images of all tables. A weight is how often an image counts.
        resamples: Number of draws; fewer where the score takes longer.
    """

    kept: str
    table: Callable[[Outcomes], Any]
    of: Callable[[Sequence[Any]], Scores]
    resamples: int = RESAMPLES

    def value(self, table: Any) -> float:
        """The score of all images of a table."""
        return float(self.of([table])(np.ones((1, len(table))))[0])


def _summed(score: Callable[[NDArray[Any]], Floats]) -> PooledScore:
    """A score that follows from areas (..., 3, K), summed over images."""

    def of(tables_I3K: Sequence[NDArray[Any]]) -> Scores:
        areas_I3K = np.concatenate(tables_I3K).astype(np.float64)
        return lambda weights_BI: score(np.tensordot(weights_BI, areas_I3K, axes=1))

    return PooledScore("areas of classes", attrgetter("areas"), of)


def _of_boxes(thresholds: Sequence[int]) -> PooledScore:
    return PooledScore(
        "boxes", attrgetter("boxes"), partial(mean_ap, thresholds=thresholds), resamples=2000
    )


#: Scores by the name of their metric.
SCORES: dict[str, PooledScore] = {
    "miou": _summed(mean_iou),
    "pixel_accuracy": _summed(pixel_accuracy),
    "map": _of_boxes(range(10)),
    "map_50": _of_boxes([0]),
    "map_75": _of_boxes([5]),
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


def pooled_interval(table: Any, score: PooledScore) -> tuple[float, float]:
    """95 % bootstrap interval of the score of one run, over images drawn anew."""
    images, scores = len(table), score.of([table])
    generator, found = np.random.default_rng(0), []
    for start in range(0, score.resamples, 1000):
        size = min(1000, score.resamples - start)
        found.append(scores(generator.multinomial(images, np.full(images, 1 / images), size=size)))
    low, high = np.quantile(np.concatenate(found), [0.025, 0.975])
    return float(low), float(high)


def pooled_difference(
    first: Sequence[Any], second: Sequence[Any], score: PooledScore
) -> PooledDifference:
    """Statistics of score(first) - score(second), the mean over seeds; a table of images a seed.

    The bootstrap draws seeds and images anew, each with replacement (crossed, as in
    `crossed_bootstrap`). The p-value is two-sided and exchanges the two models on random images,
    with all seeds: (1 + as extreme) / (1 + resamples).
    """
    seeds, images, resamples = len(first), len(first[0]), score.resamples
    pairs = list(zip(first, second, strict=True))
    apart = [(score.of([one]), score.of([other])) for one, other in pairs]
    together = [score.of(pair) for pair in pairs]

    def differences(weights_BI: NDArray[Any]) -> Floats:
        return np.stack([one(weights_BI) - other(weights_BI) for one, other in apart], axis=1)

    def exchanged(swapped_BI: NDArray[Any]) -> Floats:
        kept_BI = 1 - swapped_BI
        ours, theirs = np.hstack([kept_BI, swapped_BI]), np.hstack([swapped_BI, kept_BI])
        found_SB = np.stack([scores(ours) - scores(theirs) for scores in together])
        means_B: Floats = found_SB.mean(axis=0)
        return means_B

    generator = np.random.default_rng(0)
    observed = float(differences(np.ones((1, images))).mean())
    crossed, over_images = np.empty(resamples), np.empty(resamples)
    extreme = 0
    step = max(1, _AT_ONCE // (2 * images))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        weights_BI = generator.multinomial(images, np.full(images, 1 / images), size=size)
        weights_BS = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=size)
        found_BS = differences(weights_BI)
        crossed[start : start + size] = (weights_BS * found_BS).sum(axis=1) / seeds
        over_images[start : start + size] = found_BS.mean(axis=1)
        swapped_BI = generator.integers(0, 2, size=(size, images)).astype(np.float64)
        extreme += int((np.abs(exchanged(swapped_BI)) >= abs(observed) * (1 - 1e-9)).sum())
    low, high = np.quantile(crossed, [0.025, 0.975])
    return PooledDifference(
        bootstrap=(float(low), float(high)),
        p=(1 + extreme) / (1 + resamples),
        image_std=float(over_images.std()) * math.sqrt(images),
    )
