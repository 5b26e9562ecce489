"""COCO's mean average precision of weighted images, from what each predicted box found.

Boxes are sorted once; every draw of images only counts them anew.

Shapes: B draws, I images, K classes, N boxes of a class by falling score, P of these that find a
true one
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kora.runs.outcomes import BoxOutcomes

__all__ = ["mean_ap"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# As `pycocotools` makes them: a recall may be equal to one, so the last digit matters.
_RECALLS = np.linspace(0, 1, 101)
_ABOVE = np.arange(101) / 100 < _RECALLS  # of these, a recall of exactly j / 100 falls short
_AT_ONCE = 30_000  # numbers at a time, which the cache of a processor holds


class _Curve(NamedTuple):
    """Boxes of one class at one threshold, those of no effect left out."""

    image: Ints  # (P,) of each hit
    boxes: Any  # (P, I), sparse: boxes of each image after the hit before, up to and with this one


def mean_ap(
    tables: Sequence[BoxOutcomes], *, thresholds: Sequence[int] = range(10)
) -> Callable[[NDArray[Any]], Floats]:
    """A function from weights (B, I) of the images of all tables to their mAP (B,).

    A weight is how often an image counts. The mean is over classes with a true box in the draw (0
    if there is none), and over `thresholds`: numbers of 0.50, 0.55, ..., 0.95.
    """
    true_KI = np.concatenate([table.true for table in tables]).T.astype(np.float64)
    curves = _curves(tables, len(true_KI), true_KI.shape[1], thresholds)
    step = max(1, _AT_ONCE // max([1, *(len(one.image) for each in curves for one in each)]))

    def scores(weights_BI: NDArray[Any]) -> Floats:
        parts = range(0, len(weights_BI), step)
        return np.concatenate([of_part(weights_BI[at : at + step]) for at in parts])

    def of_part(weights_BI: NDArray[Any]) -> Floats:
        weights_IB = np.ascontiguousarray(weights_BI.T, dtype=np.float64)
        true_KB = true_KI @ weights_IB
        total_B = np.zeros(len(weights_BI))
        for each, true_B in zip(curves, np.maximum(true_KB, 1), strict=True):
            for one in each:
                total_B += _average_precision(one, weights_IB, true_B)
        means_B: Floats = total_B / len(thresholds) / np.maximum((true_KB > 0).sum(axis=0), 1)
        return means_B

    return scores


def _average_precision(curve: _Curve, weights_IB: Floats, true_B: Floats) -> Floats:
    """The mean precision (B,) at 101 recalls, each the best at this recall or above."""
    weights_BP = np.ascontiguousarray(weights_IB[curve.image].T)
    hits_BP = weights_BP.cumsum(axis=1)
    boxes_BP = np.ascontiguousarray((curve.boxes @ weights_IB).T).cumsum(axis=1)
    precision_BP = hits_BP / np.maximum(boxes_BP, 1)
    best_BP = np.maximum.accumulate(precision_BP[:, ::-1], axis=1)[:, ::-1]
    reached_BP = _reached(hits_BP, true_B[:, None])
    new_BP = np.diff(reached_BP, axis=1, prepend=0)
    found_B: Floats = np.einsum("bp,bp->b", best_BP, new_BP) / len(_RECALLS)
    return found_B


def _reached(hits_BP: Floats, true_B1: Floats) -> Floats:
    """How many of the 101 recalls hits / true reaches: `searchsorted`, but several times faster."""
    whole_BP = np.minimum(np.floor(100 * hits_BP / true_B1), 100)  # a file may say anything
    short_BP = _ABOVE[whole_BP.astype(np.int64)] & (whole_BP * true_B1 == 100 * hits_BP)
    reached_BP: Floats = whole_BP + 1 - short_BP
    return reached_BP


def _curves(
    tables: Sequence[BoxOutcomes], num_classes: int, images: int, thresholds: Sequence[int]
) -> list[list[_Curve]]:
    """The curves of each class at each threshold."""
    score, class_, hits, ignored = (
        np.concatenate([getattr(table, name).ravel() for table in tables])
        for name in ("score", "classes", "hits", "ignored")
    )
    boxes_I = np.concatenate([np.full(len(t), t.score.shape[1]) for t in tables])
    image = np.repeat(np.arange(images), boxes_I)
    order = np.argsort(-score, kind="stable")
    found = []
    for number in range(num_classes):
        mine = order[class_[order] == number]
        bits = [(hits[mine] >> bit & 1, ignored[mine] >> bit & 1) for bit in thresholds]
        found.append([_curve(image[mine[skip == 0]], hit[skip == 0], images) for hit, skip in bits])
    return found


def _curve(image_N: Ints, hit_N: Ints, images: int) -> _Curve:
    from scipy.sparse import csr_array  # takes a tenth of a second to import

    at_P = np.flatnonzero(hit_N)
    next_N = np.searchsorted(at_P, np.arange(len(image_N)))  # the hit after each box, or itself
    used_N = next_N < len(at_P)
    places = next_N[used_N], image_N[used_N]
    boxes_PI = csr_array((np.ones(len(places[0])), places), shape=(len(at_P), images))
    return _Curve(image_N[at_P], boxes_PI)
