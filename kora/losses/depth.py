"""Losses of depth over measured pixels, in float32 whatever the precision of the model.

Shapes: B images, H and W pixels. Nothing here waits for the device: pixels that do not count are
replaced and weighted by 0, never selected.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from kora.metrics.protocol import check_depths, masked_median

__all__ = ["DepthLoss", "SILogLoss", "ScaleShiftInvariantLoss", "masked_depths"]

_EPS_M = 1e-3  # predictions below 1 mm count as 1 mm, as logarithms are taken
_FLAT = 1e-6  # spread in metres up to which a map counts as constant
_ZERO = 1e-12  # mean square up to which its root counts as 0, with no gradient


class DepthLoss(nn.Module, ABC):
    """A scalar to minimise, from depths and the pixels that count.

    A new loss overrides `forward` and starts with `masked_depths`. If no pixel counts, the loss and
    its gradient are 0.
    """

    @abstractmethod
    def forward(self, prediction_BHW: Tensor, target_BHW: Tensor, valid_BHW: Tensor) -> Tensor:
        """The loss, (), from metres (B, H, W) and the bool mask of the pixels that count.

        Raises:
            ValueError: Shapes or types do not fit.
        """


class SILogLoss(DepthLoss):
    """Root of the scale-invariant error of the logarithm.

    weight * sqrt(var(g) + (1 - variance_focus) * mean(g)^2), g = ln d - ln truth, where mean and
    variance run over the valid pixels of the whole batch. Predictions below 1 mm count as 1 mm.
    Sources: Eigen et al. 2014, arXiv:1406.2283; in this form BTS, arXiv:1907.10326.

    Args:
        variance_focus: 1 ignores the scale, 0 is the RMSE of the logarithm.
        weight: Factor of the loss.

    Raises:
        ValueError: An argument out of its range.
    """

    def __init__(self, variance_focus: float = 0.85, *, weight: float = 1.0) -> None:
        super().__init__()
        if not 0 <= variance_focus <= 1:
            raise ValueError(f"variance_focus is {variance_focus}, expected 0 to 1 (BTS: 0.85).")
        if not 0 < weight < math.inf:
            raise ValueError(f"weight is {weight}, expected a positive number (BTS: 10).")
        self.variance_focus = variance_focus
        self.weight = weight

    def forward(self, prediction_BHW: Tensor, target_BHW: Tensor, valid_BHW: Tensor) -> Tensor:
        """The loss, ()."""
        prediction, target = masked_depths(prediction_BHW, target_BHW, valid_BHW)
        count = valid_BHW.sum().clamp(min=1)
        g_BHW = prediction.clamp(min=_EPS_M).log() - target.log()  # 0 where invalid
        mean = g_BHW.sum() / count
        variance = ((g_BHW - mean).square() * valid_BHW).sum() / count
        return self.weight * _safe_root(variance + (1 - self.variance_focus) * mean.square())


class ScaleShiftInvariantLoss(DepthLoss):
    """Loss for depth up to an unknown scale and shift of each image.

    Prediction and truth are each normalised to (d - t) / s per image, t the median and s the mean
    of |d - t| over valid pixels. With R the difference of the two, an image's loss is mean |R| +
    gradient_weight * sum over scales of mean (|dR/dx| + |dR/dy|), where scale k takes every 2^k-th
    row and column, and a difference counts if both of its pixels do. Averaged over the images
    that have a valid pixel. A constant map keeps s = 1. Source: MiDaS, Ranftl et al. 2020,
    arXiv:1907.01341, equations 5 and 11; there on disparity, here on depth in metres.

    Args:
        gradient_weight: Weight of the gradient term; 0 leaves it out.
        scales: Number of scales of the gradient term.

    Raises:
        ValueError: An argument out of its range.
    """

    def __init__(self, gradient_weight: float = 0.5, *, scales: int = 4) -> None:
        super().__init__()
        if not 0 <= gradient_weight < math.inf:
            raise ValueError(f"gradient_weight is {gradient_weight}, expected 0 or more.")
        if isinstance(scales, bool) or not isinstance(scales, int) or scales < 1:
            raise ValueError(f"scales is {scales!r}, expected a whole number from 1.")
        self.gradient_weight = gradient_weight
        self.scales = scales

    def forward(self, prediction_BHW: Tensor, target_BHW: Tensor, valid_BHW: Tensor) -> Tensor:
        """The loss, ()."""
        prediction, target = masked_depths(prediction_BHW, target_BHW, valid_BHW)
        residual_BHW = _normalised(prediction, valid_BHW) - _normalised(target, valid_BHW)
        loss_B = _mean_over(residual_BHW.abs(), valid_BHW)
        if self.gradient_weight:
            for step in (2**k for k in range(self.scales)):
                # The last two dimensions: [::step, ::step] would thin out images and rows.
                coarse, counts = residual_BHW[..., ::step, ::step], valid_BHW[..., ::step, ::step]
                loss_B = loss_B + self.gradient_weight * _mean_gradient(coarse, counts)
        measured_B = valid_BHW.flatten(1).any(dim=1)
        return loss_B.sum() / measured_B.sum().clamp(min=1)


def masked_depths(
    prediction_BHW: Tensor, target_BHW: Tensor, valid_BHW: Tensor
) -> tuple[Tensor, Tensor]:
    """Prediction and target, 1 where invalid, in float32 (float64 if the prediction is).

    The value of an invalid pixel, even NaN, has no influence and gets a gradient of 0.

    Raises:
        ValueError: Shapes or types do not fit.
    """
    check_depths(prediction_BHW, target_BHW)
    if not prediction_BHW.shape == target_BHW.shape == valid_BHW.shape:
        raise ValueError(
            f"Depth prediction {tuple(prediction_BHW.shape)}, target {tuple(target_BHW.shape)} and "
            f"valid {tuple(valid_BHW.shape)} differ in shape. Resize the prediction to the target."
        )
    if valid_BHW.dtype != torch.bool:
        raise ValueError(f"valid is {valid_BHW.dtype}, expected bool: true where a pixel counts.")
    dtype = torch.promote_types(prediction_BHW.dtype, torch.float32)
    invalid_BHW = ~valid_BHW
    return (
        prediction_BHW.to(dtype).masked_fill(invalid_BHW, 1),
        target_BHW.to(dtype).masked_fill(invalid_BHW, 1),
    )


def _safe_root(square: Tensor) -> Tensor:
    """Root of a number >= 0; 0 with a gradient of 0 if it is (nearly) 0."""
    zero = square <= _ZERO  # false for NaN, so that divergence shows
    return torch.where(zero, 0, torch.where(zero, 1, square).sqrt())


def _normalised(depth_BHW: Tensor, valid_BHW: Tensor) -> Tensor:
    """(d - t) / s: median 0 and mean absolute deviation 1 over each image's valid pixels."""
    centre_B = masked_median(depth_BHW.flatten(1), valid_BHW.flatten(1))
    centred_BHW = depth_BHW - centre_B[:, None, None]
    spread_B = _mean_over(centred_BHW.abs(), valid_BHW)
    return centred_BHW / torch.where(spread_B > _FLAT, spread_B, 1)[:, None, None]


def _mean_over(values_BHW: Tensor, valid_BHW: Tensor) -> Tensor:
    """Mean (B,) over each image's valid pixels; 0 if there is none."""
    return (values_BHW * valid_BHW).sum(dim=(1, 2)) / valid_BHW.sum(dim=(1, 2)).clamp(min=1)


def _mean_gradient(residual_BHW: Tensor, valid_BHW: Tensor) -> Tensor:
    """Sum (B,) of |differences| of neighbours in a row and in a column, over valid pixels."""
    total_B = torch.zeros_like(residual_BHW[:, 0, 0])
    for dim in (1, 2):
        size = residual_BHW.shape[dim]
        if size > 1:
            both = valid_BHW.narrow(dim, 1, size - 1) & valid_BHW.narrow(dim, 0, size - 1)
            total_B = total_B + (residual_BHW.diff(dim=dim).abs() * both).sum(dim=(1, 2))
    return total_B / valid_BHW.sum(dim=(1, 2)).clamp(min=1)
