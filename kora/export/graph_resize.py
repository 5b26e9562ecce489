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

from datamodules.recipe import GREY, ImageRecipe

__all__ = ["content_size", "fit_pixels", "length", "resize_pixels"]

_RADIUS = {"bicubic": 2.0, "bilinear": 1.0}
_ONE = float(1 << 22)  # Pillow's fixed point: 32 bits less 8 of the pixel and 2 to spare


def fit_pixels(images: Tensor, recipe: ImageRecipe) -> Tensor:
    """uint8 images (B, 3, H, W) as `recipe` fits them: whole numbers in float64, (B, 3, h, w).

    Raises:
        ValueError: The recipe is `cover`.
    """
    x = images.double()
    if recipe.fit is None or recipe.size is None:
        return x
    if recipe.fit == "cover":
        raise ValueError(
            "A graph does not hold the fit 'cover' of images, only crop, stretch and contain. Use "
            "kora predict."
        )
    high, wide = length(x, -2), length(x, -1)
    crop_high, crop_wide = high, wide
    if recipe.fit == "crop":
        # A plain number would be written into the graph in single precision.
        ratio = torch.tensor(recipe.size[1] / recipe.size[0], dtype=torch.float64)
        crop_high = torch.minimum(high, wide / ratio)
        crop_wide = torch.minimum(wide, high * ratio)
    rows, columns = content_size(images, recipe)
    x = _eight_bit(x, -1, recipe.size[1], wide, crop_wide, columns)
    x = _eight_bit(x, -2, recipe.size[0], high, crop_high, rows)
    if recipe.fit != "contain":
        return x
    in_rows_h1 = torch.arange(recipe.size[0])[:, None] < rows
    shown_hw = in_rows_h1 & (torch.arange(recipe.size[1]) < columns)
    return torch.where(shown_hw, x, torch.tensor(GREY, dtype=torch.float64)[:, None, None])


def content_size(images: Tensor, recipe: ImageRecipe) -> tuple[Tensor, Tensor]:
    """Height and width of the picture within its fitted pixels: `fitted_content` in a graph."""
    high, wide = length(images, -2), length(images, -1)
    if recipe.fit is None or recipe.size is None:
        return high, wide
    rows, columns = (torch.tensor(float(side), dtype=torch.float64) for side in recipe.size)
    if recipe.fit != "contain":
        return rows, columns
    tall = high * columns >= wide * rows
    # Whole numbers far below 2 ** 53, so the quotients round to the right side.
    fitted_rows = ((2 * high * columns + wide) / (2 * wide)).floor().clamp(min=1)
    fitted_columns = ((2 * wide * rows + high) / (2 * high)).floor().clamp(min=1)
    return torch.where(tall, rows, fitted_rows), torch.where(tall, fitted_columns, columns)


def resize_pixels(pixels: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """Pixels (B, 3, H, W) in [0, 255], float64, as `resized` makes them: float32 in [0, 1]."""
    x = pixels.float() / 255
    for axis, out in ((-1, size[1]), (-2, size[0])):
        whole = length(pixels, axis)
        start, filled = torch.zeros_like(whole), torch.tensor(float(out), dtype=torch.float64)
        weight_OL = _weights(pixels, axis, out, start, whole, filled, interpolation)
        x = _along(x, axis, weight_OL.float())
    return x.clamp(0, 1)


def _eight_bit(
    x: Tensor, axis: int, out: int, whole: Tensor, kept: Tensor, filled: Tensor
) -> Tensor:
    """One pass of Pillow: weights in fixed point, the sum rounded and cut to 8 bits.

    Of `out` pixels, the first `filled` show the axis; the others are to be overwritten.
    """
    start = (whole - kept) * 0.5
    low, high = start.float(), (start + kept).float()  # Pillow keeps the box in single precision
    extent = (high - low).double()
    weight_OL = _weights(x, axis, out, low.double(), extent, filled, "bicubic") * _ONE
    fixed_OL = torch.where(weight_OL < 0, (weight_OL - 0.5).ceil(), (weight_OL + 0.5).floor())
    return ((_along(x, axis, fixed_OL) + _ONE / 2) / _ONE).floor().clamp(0, 255)


def _along(x: Tensor, axis: int, weight_OL: Tensor) -> Tensor:
    return x @ weight_OL.T if axis == -1 else weight_OL @ x


def length(x: Tensor, axis: int) -> Tensor:
    """The length of an axis, computed in the graph, so that it is not a constant there."""
    return torch.arange(x.shape[axis], dtype=torch.float64)[-1] + 1


def _weights(
    x: Tensor, axis: int, out: int, low: Tensor, extent: Tensor, filled: Tensor, interpolation: str
) -> Tensor:
    """Weight (O, L) of each pixel of an axis in each pixel of the result.

    The first `filled` pixels of the result show `extent`.
    """
    radius = _RADIUS[interpolation]
    place_L = torch.arange(x.shape[axis], dtype=torch.float64)
    scale = extent / filled
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
