"""Depth metrics of one protocol, exact on one process and on many.

Only one row is stored per image, its means over valid pixels: memory stays small, and both
averages, over images and over pixels, come from the same rows.
Shapes: B images of a batch, I images in all, H, W and h, w sizes, N pixels, K moments.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat, rank_zero_warn

from kora.metrics.moments import MEASURES, MOMENTS, moments, pooled_moments
from kora.metrics.order import each_once
from kora.metrics.protocol import DepthProtocol, check_depths

__all__ = ["DepthMetrics"]

_NO_INDEX = -1


class DepthMetrics(Metric):
    """All nine metrics in one pass, which shares masks, errors and logarithms.

    `update` adds rows; `compute` derives the values from them.
    """

    is_differentiable = False
    full_state_update = False

    rows: list[Tensor]  # (B, K) float32 each
    keys: list[Tensor]  # (B, 2) int64 each: index and count of valid pixels

    def __init__(self, protocol: DepthProtocol, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.protocol = protocol
        self._table: dict[str, Tensor] = {}
        self._skipped = 0
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.add_state("keys", default=[], dist_reduce_fx="cat")

    def update(
        self, prediction_Bhw: Tensor, target_BHW: Tensor, index_B: Tensor | None = None
    ) -> None:
        """Add a batch, in metres; both may have any floating type, the prediction any size.

        `compute` drops an image whose `index_B` (>= 0) came before: samplers of several processes
        repeat images to fill their last batch. Without an index nothing is dropped.

        Raises:
            ValueError: Wrong shapes or types, or a size that the protocol's crop does not fit.
        """
        check_depths(prediction_Bhw, target_BHW)
        batch = len(target_BHW)
        if index_B is None:
            index_B = torch.full((batch,), _NO_INDEX, device=target_BHW.device)
        elif index_B.shape != (batch,) or index_B.is_floating_point() or index_B.is_complex():
            raise ValueError(
                f"Index has shape {tuple(index_B.shape)} and type {index_B.dtype}, expected "
                f"({batch},) integers: one for each image."
            )
        protocol = self.protocol
        window = (..., *protocol.window(*target_BHW.shape[-2:]))
        depth_BHW = protocol.prepare(prediction_Bhw, target_BHW)
        target_BN = target_BHW[window].float().flatten(1)
        valid_BN = protocol.in_range(target_BN)
        of_batch = moments(depth_BHW[window].flatten(1), target_BN, valid_BN)
        self.rows.append(torch.stack([of_batch[name] for name in MOMENTS], dim=1))
        self.keys.append(torch.stack([index_B.long(), of_batch["pixels"]], dim=1))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the rows of all processes, including those that saw no image."""
        if not self.rows:
            self.rows = [torch.empty(0, len(MOMENTS), device=self.device)]
            self.keys = [torch.empty(0, 2, dtype=torch.long, device=self.device)]
        super().sync(*args, **kwargs)

    def per_image(self) -> dict[str, Tensor]:
        """Values (I,) of each image that counts, by metric, with its `index` and `pixels`.

        Images come in the order of their index (-1: none was given). Call on every process.
        """
        self.compute()  # from the cache if nothing was added since
        return dict(self._table)

    @property
    def skipped(self) -> int:
        """Images without one valid pixel, which do not count. Call on every process."""
        self.per_image()
        return self._skipped

    def compute(self) -> dict[str, Tensor]:
        """Values () by `abs_rel`, `sq_rel`, `rmse_m`, `rmse_log`, `log10`, `silog`, `delta1` to 3.

        NaN with a warning if no image had a valid pixel. Stores the values of each image for
        `per_image`.
        """
        rows_IK, keys_I2 = self._gathered()
        measured_I = keys_I2[:, 1] > 0
        self._skipped = int((~measured_I).sum())
        rows_IK, keys_I2 = rows_IK[measured_I], keys_I2[measured_I]
        of_images = dict(zip(MOMENTS, rows_IK.unbind(1), strict=True))
        self._table = {name: measure(of_images) for name, measure in MEASURES.items()}
        self._table |= {"index": keys_I2[:, 0], "pixels": keys_I2[:, 1]}
        if not len(rows_IK):
            rank_zero_warn(
                f"No depth metric can be given: of {self._skipped} images none has a valid pixel "
                f"({self.protocol.sentence()}). Compare that range with the data's, in metres."
            )
            return {name: rows_IK.new_tensor(math.nan) for name in MEASURES}
        if self.protocol.average == "image":
            return {name: self._table[name].mean() for name in MEASURES}
        pooled = pooled_moments(of_images, keys_I2[:, 1].to(rows_IK.dtype))
        return {name: measure(pooled) for name, measure in MEASURES.items()}

    def _gathered(self) -> tuple[Tensor, Tensor]:
        """Rows (I, K) and keys (I, 2) of all images in the order of their index, each once."""
        if len(self.rows) == 0:
            empty = torch.empty(0, len(MOMENTS), device=self.device)
            return empty, torch.empty(0, 2, dtype=torch.long, device=self.device)
        rows, keys = dim_zero_cat(self.rows), dim_zero_cat(self.keys)
        if rows.device.type != "mps":  # which has no float64
            rows = rows.double()
        kept = each_once(keys[:, 0])
        return rows[kept], keys[kept]
