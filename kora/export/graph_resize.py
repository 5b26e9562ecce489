"""The resizing of a recipe in operations that an ONNX graph has, for images of any size.

Both ways of resizing multiply each axis by a matrix of weights, which depends only on the sizes.
Pillow computes on 8 bits in fixed point. Here, its numbers are whole numbers below 2 ** 53 in
float64, so the result equals Pillow's to the bit. Source: `ImagingResample` of Pillow
(Resample.c), which the antialiased `interpolate` of torch follows in floating point.

Shapes: B images, H and W pixels of an image, L of one axis before and O after, h and w after
"""

from __future__ import annotations

import torch
from torch import Tensor

from datamodules.recipe import ImageRecipe

__all__ = ["fit_pixels", "resize_pixels"]

_RADIUS = {"bicubic": 2.0, "bilinear": 1.0}
_ONE = float(1 << 22)  # Pillow's fixed point: 32 bits less 8 of the pixel and 2 to spare


def fit_pixels(images: Tensor, recipe: ImageRecipe) -> Tensor:
    """uint8 images (B, 3, H, W) as `recipe` fits them: whole numbers in float64, (B, 3, h, w)."""
    x = images.double()
    if recipe.fit is None or recipe.size is None:
        return x
    high, wide = _length(x, -2), _length(x, -1)
    crop_high, crop_wide = high, wide
    if recipe.fit == "crop":
        # A plain number would be written into the graph in single precision.
        ratio = torch.tensor(recipe.size[1] / recipe.size[0], dtype=torch.float64)
        crop_high = torch.minimum(high, wide / ratio)
        crop_wide = torch.minimum(wide, high * ratio)
    x = _eight_bit(x, -1, recipe.size[1], wide, crop_wide)
    return _eight_bit(x, -2, recipe.size[0], high, crop_high)


def resize_pixels(pixels: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """Pixels (B, 3, H, W) in [0, 255], float64, as `resized` makes them: float32 in [0, 1]."""
    x = pixels.float() / 255
    for axis, length in ((-1, size[1]), (-2, size[0])):
        whole = _length(pixels, axis)
        weight_OL = _weights(pixels, axis, length, torch.zeros_like(whole), whole, interpolation)
        x = _along(x, axis, weight_OL.float())
    return x.clamp(0, 1)


def _eight_bit(x: Tensor, axis: int, out: int, length: Tensor, kept: Tensor) -> Tensor:
    """One pass of Pillow: weights in fixed point, the sum rounded and cut to 8 bits."""
    start = (length - kept) * 0.5
    low, high = start.float(), (start + kept).float()  # Pillow keeps the box in single precision
    weight_OL = _weights(x, axis, out, low.double(), (high - low).double(), "bicubic") * _ONE
    fixed_OL = torch.where(weight_OL < 0, (weight_OL - 0.5).ceil(), (weight_OL + 0.5).floor())
    return ((_along(x, axis, fixed_OL) + _ONE / 2) / _ONE).floor().clamp(0, 255)


def _along(x: Tensor, axis: int, weight_OL: Tensor) -> Tensor:
    return x @ weight_OL.T if axis == -1 else weight_OL @ x


def _length(x: Tensor, axis: int) -> Tensor:
    """The length of an axis, computed in the graph, so that it is not a constant there."""
    return torch.arange(x.shape[axis], dtype=torch.float64)[-1] + 1


def _weights(
    x: Tensor, axis: int, out: int, low: Tensor, extent: Tensor, interpolation: str
) -> Tensor:
    """Weight (O, L) of each pixel of an axis in each pixel of the result."""
    radius = _RADIUS[interpolation]
    place_L = torch.arange(x.shape[axis], dtype=torch.float64)
    scale = extent / out
    wide = scale.clamp(min=1)  # below 1 the picture grows, and nothing needs to be averaged
    centre_O = low + (torch.arange(out, dtype=torch.float64) + 0.5) * scale
    first_O1 = (centre_O - radius * wide + 0.5).floor()[:, None]
    end_O1 = (centre_O + radius * wide + 0.5).floor()[:, None]
    away_OL = ((place_L - centre_O[:, None] + 0.5) * (1 / wide)).abs()
    if interpolation == "bilinear":
        weight_OL = (1 - away_OL).clamp(min=0)
    else:  # with a = -0.5
        near = (1.5 * away_OL - 2.5) * away_OL * away_OL + 1
        far = (((away_OL - 5) * away_OL + 8) * away_OL - 4) * -0.5
        weight_OL = torch.where(away_OL < 1, near, torch.where(away_OL < 2, far, 0.0 * far))
    inside = (place_L >= first_O1) & (place_L < end_O1)
    weight_OL = weight_OL * inside
    return weight_OL / weight_OL.sum(dim=1, keepdim=True)
