"""The formulas of depth metrics, as functions of each image's means over its valid pixels.

Shapes: B images of a batch, I images in all, N pixels of an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["MEASURES", "MOMENTS", "moments", "pooled_moments"]

#: The means that `moments` returns, in their order in a row.
MOMENTS = (
    "relative",
    "relative_square",
    "square",
    "log_mean",
    "log_variance",
    "log_absolute",
    "within1",
    "within2",
    "within3",
)

#: Each metric as a function of moments: of one image's, or of those pooled over all pixels.
# With d predicted, g true, e = ln d - ln g. Source: Eigen et al. 2014, arXiv:1406.2283, section 4.
MEASURES: dict[str, Callable[[Mapping[str, Tensor]], Tensor]] = {
    "abs_rel": lambda m: m["relative"],
    "sq_rel": lambda m: m["relative_square"],
    "rmse_m": lambda m: m["square"].sqrt(),
    "rmse_log": lambda m: (m["log_variance"] + m["log_mean"].square()).sqrt(),
    "log10": lambda m: m["log_absolute"] / math.log(10),
    "silog": lambda m: 100 * m["log_variance"].sqrt(),
    "delta1": lambda m: m["within1"],
    "delta2": lambda m: m["within2"],
    "delta3": lambda m: m["within3"],
}


def moments(depth_BN: Tensor, target_BN: Tensor, valid_BN: Tensor) -> dict[str, Tensor]:
    """Means over each image's valid pixels, (B,) float32 each, and `pixels`, their number.

    An invalid pixel is set to d = g = 1, which makes all its errors 0.
    """
    invalid_BN = ~valid_BN
    depth_BN = depth_BN.masked_fill(invalid_BN, 1)
    target_BN = target_BN.masked_fill(invalid_BN, 1)
    pixels_B = valid_BN.sum(dim=1)
    count_B = pixels_B.clamp(min=1).float()

    def mean(values_BN: Tensor) -> Tensor:
        return values_BN.sum(dim=1) / count_B

    absolute_BN = (depth_BN - target_BN).abs_()
    relative_BN = absolute_BN / target_BN
    found = {
        "pixels": pixels_B,
        "relative": mean(relative_BN),
        "relative_square": mean(relative_BN.mul_(absolute_BN)),
        "square": mean(absolute_BN.square_()),
    }
    log_BN = (depth_BN / target_BN).log_()
    found["log_mean"] = mean(log_BN)
    centred_BN = log_BN - found["log_mean"][:, None]  # a difference of squares would cancel
    found["log_variance"] = mean(centred_BN.masked_fill_(invalid_BN, 0).square_())
    found["log_absolute"] = mean(log_BN.abs_())
    ratio_BN = torch.maximum(depth_BN, target_BN).div_(torch.minimum(depth_BN, target_BN))
    beyond_BN = torch.empty_like(ratio_BN)  # a bool would be copied to int64 for the sum
    for power in (1, 2, 3):
        # The bounds 1.25, 1.5625 and 1.953125 are exact in float32. Invalid pixels have ratio 1.
        found[f"within{power}"] = 1 - mean(torch.ge(ratio_BN, 1.25**power, out=beyond_BN))
    return found


def pooled_moments(of_images: Mapping[str, Tensor], pixels_I: Tensor) -> dict[str, Tensor]:
    """From moments (I,) of images to those () of all their pixels together."""
    weight_I = pixels_I / pixels_I.sum()
    pooled = {name: (value_I * weight_I).sum() for name, value_I in of_images.items()}
    # The variance within the images, plus that between them.
    between_I = (of_images["log_mean"] - pooled["log_mean"]).square()
    pooled["log_variance"] = pooled["log_variance"] + (between_I * weight_I).sum()
    return pooled
