"""Areas of classes in masks, and the scores of segmentation that follow from them.

Shapes: K classes, H and W pixels
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.segmentation.masks import IGNORED

__all__ = ["areas_of", "boundary_of", "boundary_width", "iou_of", "mean_iou"]

#: Width of a boundary, as a share of the diagonal of the image (Cheng et al., arXiv:2103.16562).
_BOUNDARY = 0.02


def areas_of(prediction_HW: Tensor, truth_HW: Tensor, num_classes: int) -> Tensor:
    """Pixels (3, K) of the overlap, of the prediction and of the truth, by class; int64.

    Pixels whose truth is 255 do not count; a prediction of 255 is of no class.
    """
    counted_HW = truth_HW != IGNORED
    predicted_P, true_P = prediction_HW[counted_HW].long(), truth_HW[counted_HW].long()
    overlap_P = true_P[predicted_P == true_P]
    counts = [
        torch.bincount(of, minlength=IGNORED + 1)[:num_classes]
        for of in (overlap_P, predicted_P, true_P)
    ]
    return torch.stack(counts)


def boundary_width(height: int, width: int) -> int:
    """Pixels from the contour that belong to the boundary, at least 1."""
    return max(1, round(_BOUNDARY * math.hypot(height, width)))


def boundary_of(mask_HW: Tensor, distance: int) -> Tensor:
    """The mask with 255 at pixels that are farther than `distance` from every other class.

    What is left are the inner boundaries of the regions; the edge of the image is a contour, too.
    The distance is that of a square, as with `distance` erosions by 3 x 3.
    Source: Cheng et al. 2021, arXiv:2103.16562, section 5.
    """
    height, width = mask_HW.shape
    side = 2 * distance + 1
    inner_HW = torch.zeros_like(mask_HW, dtype=torch.bool)
    if min(height, width) >= side:
        # A window is of one class if no two neighbours in it differ.
        across = _window_sums(mask_HW[:, 1:] != mask_HW[:, :-1], side, side - 1)
        along = _window_sums(mask_HW[1:] != mask_HW[:-1], side - 1, side)
        inside = slice(distance, height - distance), slice(distance, width - distance)
        inner_HW[inside] = (across + along) == 0
    return mask_HW.masked_fill(inner_HW, IGNORED)


def _window_sums(values_HW: Tensor, rows: int, columns: int) -> Tensor:
    """Sums over all windows of this size that lie inside, by a table of sums."""
    table = F.pad(
        values_HW.int().cumsum(0, dtype=torch.int32).cumsum(1, dtype=torch.int32), (1, 0, 1, 0)
    )
    lower = table[rows:, columns:] - table[rows:, :-columns]
    return lower - (table[:-rows, columns:] - table[:-rows, :-columns])


def iou_of(areas_3K: Tensor) -> Tensor:
    """IoU (K,) from areas (..., 3, K); NaN for a class in neither prediction nor truth."""
    overlap, predicted, true = areas_3K.double().unbind(-2)
    return overlap / (predicted + true - overlap)


def mean_iou(areas_3K: Tensor) -> Tensor:
    """Mean over the classes that are in the prediction or in the truth; NaN without any."""
    return iou_of(areas_3K).nanmean(dim=-1)
