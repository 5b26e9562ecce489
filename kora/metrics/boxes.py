"""Which predicted boxes find a true one, by COCO's rules.

Shapes: D predicted boxes of an image, by falling score; M true boxes of it; T thresholds of IoU
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["THRESHOLDS", "box_iou", "match_boxes"]

#: As `pycocotools` makes them: an IoU may be equal to one, so the last digit matters.
THRESHOLDS: NDArray[np.float64] = np.linspace(0.5, 0.95, 10)

_BITS = 1 << np.arange(len(THRESHOLDS))


def box_iou(
    boxes_D4: NDArray[Any], true_M4: NDArray[Any], crowd_M: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """IoU (D, M) of boxes x1, y1, x2, y2; with a crowd, the share of the predicted box in it."""
    low_D2, size_D2 = _corner_and_size(boxes_D4)
    low_M2, size_M2 = _corner_and_size(true_M4)
    high_DM2 = np.minimum((low_D2 + size_D2)[:, None], (low_M2 + size_M2)[None])
    sides_DM2 = (high_DM2 - np.maximum(low_D2[:, None], low_M2[None])).clip(min=0)
    both_DM = sides_DM2.prod(axis=-1)
    own_D1, true_M = size_D2.prod(axis=-1)[:, None], size_M2.prod(axis=-1)
    union_DM = np.where(crowd_M, own_D1, own_D1 + true_M - both_DM)
    iou_DM: NDArray[np.float64] = np.zeros_like(both_DM)
    np.divide(both_DM, union_DM, out=iou_DM, where=both_DM > 0)
    return iou_DM


def _corner_and_size(boxes_N4: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """As COCO stores a box; the size is rounded as that of the boxes that are evaluated."""
    size_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
    return boxes_N4[:, :2].astype(np.float64), size_N2.astype(np.float64)


def match_boxes(
    boxes_D4: NDArray[Any],
    label_D: NDArray[Any],
    true_M4: NDArray[Any],
    true_label_M: NDArray[Any],
    crowd_M: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Bits (D,) of the thresholds at which a box finds a true one, and at which it is ignored.

    Each box takes the true box of its class with the highest IoU that no box of a higher score
    took. A box that finds none is ignored if it lies in a crowd region, which is never taken.
    """
    same_DM = label_D[:, None] == true_label_M
    iou_DM = np.where(same_DM, box_iou(boxes_D4, true_M4, crowd_M), -1)
    hits_D, ignored_D = np.zeros((2, len(boxes_D4)), dtype=np.int64)
    taken_TM = np.zeros((len(THRESHOLDS), len(true_M4)), dtype=bool)
    for row in np.flatnonzero(iou_DM.max(axis=1, initial=-1) >= THRESHOLDS[0]):
        near_TM = iou_DM[row] >= THRESHOLDS[:, None]
        free_TM = near_TM & ~taken_TM & ~crowd_M
        hit_T = free_TM.any(axis=1)
        # Of equal ones COCO takes the last.
        best_T = free_TM.shape[1] - 1 - np.where(free_TM, iou_DM[row], -1)[:, ::-1].argmax(axis=1)
        taken_TM[hit_T, best_T[hit_T]] = True
        hits_D[row] = _BITS[hit_T].sum()
        ignored_D[row] = _BITS[~hit_T & (near_TM & crowd_M).any(axis=1)].sum()
    return hits_D, ignored_D
