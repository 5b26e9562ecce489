"""Metrics of segmentation over a whole data set, exact on one process and on many.

Only the areas of the classes are stored of each image, so memory stays small, and metrics of the
data set, of groups of images and of resampled images come from the same numbers.
Shapes: B images of a batch, I images in all, K classes, H and W pixels
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from datamodules.segmentation.masks import IGNORED
from kora.metrics.areas import areas_of, boundary_of, boundary_width, iou_of, mean_iou
from kora.metrics.order import each_once

__all__ = ["SegmentationMetrics"]

_NO_INDEX = -1


class SegmentationMetrics(Metric):
    """`miou`, `pixel_accuracy` and `boundary_miou`, from areas summed over all images.

    mIoU is the mean over the classes that are in the truth or in the prediction of the data set, as
    published results count it; it is not the mean of the images' IoU. Boundary IoU looks only at
    pixels within 2 % of the diagonal from a contour (Cheng et al. 2021, arXiv:2103.16562).

    Args:
        num_classes: K.
        boundary: Measure `boundary_miou`, which takes several times as long.
    """

    is_differentiable = False
    full_state_update = False

    rows: list[Tensor]  # (B, A, 3, K) int64 each; A is 2 with boundaries, else 1
    keys: list[Tensor]  # (B,) int64 each: index

    def __init__(self, num_classes: int, *, boundary: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.boundary = boundary
        self._table: dict[str, Tensor] = {}
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.add_state("keys", default=[], dist_reduce_fx="cat")

    def update(
        self,
        predictions: Sequence[Tensor],
        truths: Sequence[Tensor],
        index_B: Tensor | None = None,
    ) -> None:
        """Add images: a prediction and a truth (H, W) each, of one size; a truth of 255 is ignored.

        `compute` drops an image whose `index_B` (>= 0) came before: samplers of several processes
        repeat images to fill their last batch. Without an index nothing is dropped.
        """
        rows = []
        for predicted_HW, true_HW in zip(predictions, truths, strict=True):
            assert predicted_HW.shape == true_HW.shape, "a prediction of another size"
            areas = [areas_of(predicted_HW, true_HW, self.num_classes)]
            if self.boundary:
                areas.append(self._boundary_areas(predicted_HW, true_HW))
            rows.append(torch.stack(areas))
        self.rows.append(torch.stack(rows))
        no_index = torch.full((len(rows),), _NO_INDEX, device=rows[0].device)
        self.keys.append(no_index if index_B is None else index_B.long().to(rows[0].device))

    def _boundary_areas(self, predicted_HW: Tensor, true_HW: Tensor) -> Tensor:
        """Areas (3, K) of the boundaries; ignored pixels are a region of their own in both."""
        distance, counted_HW = boundary_width(*true_HW.shape), true_HW != IGNORED
        edges_HW = boundary_of(predicted_HW.masked_fill(~counted_HW, IGNORED), distance)
        true_HW = boundary_of(true_HW, distance)
        # What is no boundary of the truth still counts for the prediction: as one of no class.
        inner_HW = counted_HW & (true_HW == IGNORED)
        return areas_of(edges_HW, true_HW.masked_fill(inner_HW, IGNORED - 1), self.num_classes)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the rows of all processes, including those that saw no image."""
        if not self.rows:
            self.rows = [self._no_rows()]
            self.keys = [torch.empty(0, dtype=torch.long, device=self.device)]
        super().sync(*args, **kwargs)

    def _no_rows(self) -> Tensor:
        size = (0, 1 + self.boundary, 3, self.num_classes)
        return torch.empty(size, dtype=torch.long, device=self.device)

    def per_image(self) -> dict[str, Tensor]:
        """Of each image that counts: its `index` (I,), and areas `overlap`, `predicted`, `true`.

        Areas are (I, K). Images come in the order of their index (-1: none was given). Call on
        every process.
        """
        self.compute()  # from the cache if nothing was added since
        return dict(self._table)

    def compute(self) -> dict[str, Tensor]:
        """`miou`, `pixel_accuracy`, and `boundary_miou` if measured; NaN if no pixel counts.

        Stores the areas of each image for `per_image`.
        """
        rows, keys = self._gathered()
        overlap, predicted, true = rows[:, 0].unbind(1)
        self._table = {"index": keys, "overlap": overlap, "predicted": predicted, "true": true}
        areas_A3K = rows.sum(dim=0)
        pixels = areas_A3K[0, 2].sum()
        right = areas_A3K[0, 0].sum().double()
        found = {
            "miou": mean_iou(areas_A3K[0]),
            "pixel_accuracy": right / pixels if pixels else right.new_tensor(math.nan),
        }
        if self.boundary:
            found["boundary_miou"] = mean_iou(areas_A3K[1])
        return found

    def iou(self) -> Tensor:
        """IoU (K,) of each class; NaN for one in neither truth nor prediction."""
        table = self.per_image()
        return iou_of(torch.stack([table[n].sum(dim=0) for n in ("overlap", "predicted", "true")]))

    def _gathered(self) -> tuple[Tensor, Tensor]:
        """Rows (I, A, 3, K) and keys (I,) of all images in the order of their index, each once."""
        if len(self.rows) == 0:
            return self._no_rows(), torch.empty(0, dtype=torch.long, device=self.device)
        rows, index = dim_zero_cat(self.rows), dim_zero_cat(self.keys)
        kept = each_once(index)
        return rows[kept], index[kept]
