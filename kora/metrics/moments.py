"""The formulas of depth metrics, as functions of each image's means over its valid pixels.

Shapes: B images of a batch, I images in all, N pixels of an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["MEASURES", "Measure", "Moments", "pooled_moments"]


class Measure(NamedTuple):
    """A metric as a function of moments: of one image's, or of those pooled over all pixels."""

    moments: tuple[str, ...]
    value: Callable[[Mapping[str, Tensor]], Tensor]


# With d predicted, g true, e = ln d - ln g. Source: Eigen et al. 2014, arXiv:1406.2283, section 4.
MEASURES: dict[str, Measure] = {
    "abs_rel": Measure(("relative",), lambda m: m["relative"]),
    "sq_rel": Measure(("relative_square",), lambda m: m["relative_square"]),
    "rmse_m": Measure(("square",), lambda m: m["square"].sqrt()),
    "rmse_log": Measure(
        ("log_mean", "log_variance"), lambda m: (m["log_variance"] + m["log_mean"].square()).sqrt()
    ),
    "log10": Measure(("log_absolute",), lambda m: m["log_absolute"] / math.log(10)),
    "silog": Measure(("log_mean", "log_variance"), lambda m: 100 * m["log_variance"].sqrt()),
    "delta1": Measure(("within1",), lambda m: m["within1"]),
    "delta2": Measure(("within2",), lambda m: m["within2"]),
    "delta3": Measure(("within3",), lambda m: m["within3"]),
}


class Moments:
    """Means over each image's valid pixels, (B,) float32, each worked out when first asked for.

    An invalid pixel is set to d = g = 1, which makes all its errors 0.
    """

    def __init__(self, depth_BN: Tensor, target_BN: Tensor, valid_BN: Tensor) -> None:
        self._invalid_BN = ~valid_BN
        self._depth_BN = depth_BN.masked_fill(self._invalid_BN, 1)
        self._target_BN = target_BN.masked_fill(self._invalid_BN, 1)
        self.pixels_B = valid_BN.sum(dim=1)
        self._count_B = self.pixels_B.clamp(min=1).float()

    def __getitem__(self, name: str) -> Tensor:
        moment: Tensor = getattr(self, name)
        return moment

    @cached_property
    def relative(self) -> Tensor:
        return self._mean(self._relative)

    @cached_property
    def relative_square(self) -> Tensor:
        return self._mean(self._relative * self._absolute)

    @cached_property
    def square(self) -> Tensor:
        return self._mean(self._absolute.square())

    @cached_property
    def log_mean(self) -> Tensor:
        return self._mean(self._log)

    @cached_property
    def log_variance(self) -> Tensor:
        centred_BN = self._log - self.log_mean[:, None]  # a difference of squares would cancel
        return self._mean(centred_BN.masked_fill_(self._invalid_BN, 0).square_())

    @cached_property
    def log_absolute(self) -> Tensor:
        return self._mean(self._log.abs())

    @cached_property
    def within1(self) -> Tensor:
        return self._within(1)

    @cached_property
    def within2(self) -> Tensor:
        return self._within(2)

    @cached_property
    def within3(self) -> Tensor:
        return self._within(3)

    def _within(self, power: int) -> Tensor:
        # The bounds 1.25, 1.5625 and 1.953125 are exact in float32. Invalid pixels have ratio 1.
        beyond_BN = torch.empty_like(self._ratio)  # a bool would be copied to int64 for the sum
        return 1 - self._mean(torch.ge(self._ratio, 1.25**power, out=beyond_BN))

    def _mean(self, values_BN: Tensor) -> Tensor:
        return values_BN.sum(dim=1) / self._count_B

    # Maps (B, N), shared by the moments.

    @cached_property
    def _absolute(self) -> Tensor:
        return (self._depth_BN - self._target_BN).abs_()

    @cached_property
    def _relative(self) -> Tensor:
        return self._absolute / self._target_BN

    @cached_property
    def _log(self) -> Tensor:
        return (self._depth_BN / self._target_BN).log_()

    @cached_property
    def _ratio(self) -> Tensor:
        """max(d/g, g/d)."""
        larger_BN = torch.maximum(self._depth_BN, self._target_BN)
        return larger_BN.div_(torch.minimum(self._depth_BN, self._target_BN))


def pooled_moments(moments: Mapping[str, Tensor], pixels_I: Tensor) -> dict[str, Tensor]:
    """Moments (I,) of images into those () of all their pixels together."""
    weight_I = pixels_I / pixels_I.sum()
    pooled = {name: (value_I * weight_I).sum() for name, value_I in moments.items()}
    if "log_variance" in pooled:  # within the images, and between them
        between_I = (moments["log_mean"] - pooled["log_mean"]).square()
        pooled["log_variance"] = pooled["log_variance"] + (between_I * weight_I).sum()
    return pooled
