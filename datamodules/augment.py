"""Augment a whole batch on its device: each image with its own draws, its maps with it.

Shapes: B images, C channels, H height, W width
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["DRAWS", "Augment", "augment_batch", "check_augment", "recolour"]

Augment = Literal["none", "flip", "flip_crop", "flip_crop_color"]

#: Numbers that an image needs at most: mirror, two shifts, four of colour.
DRAWS = 7

_SHIFT = 8  # the window moves by up to 1/8 of the size
_FACTORS = 0.2  # brightness, contrast and saturation are scaled by 1 +- this
_HUE_TURNS = 0.03

#: RGB to luma and two axes of chroma (NTSC's YIQ); grey has no chroma.
_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


def check_augment(name: str) -> None:
    """Raises ValueError for an unknown augmentation."""
    if name not in get_args(Augment):
        raise ValueError(f"augment is {name!r}; use one of {', '.join(get_args(Augment))}.")


def augment_batch(
    batch: Mapping[str, Tensor], *, augment: Augment, draws_BK: Tensor | None = None
) -> dict[str, Tensor]:
    """Augmented copy of a batch: `image` uint8 (B, 3, H, W), and maps (B, H, W) or (B, C, H, W).

    `flip` mirrors each image with probability 1/2; `flip_crop` also shifts it by up to an eighth of
    its size; `flip_crop_color` also changes its brightness, contrast, saturation and hue mildly.
    The maps of an image move with it. Pixels are only moved and never interpolated: the focal
    length stays, and with it what a depth in metres looks like.

    Where the window leaves the frame, an image is reflected and a map is 0: a depth not measured, a
    mask without object. A reflected map would claim geometry that nobody saw. Entries with one axis
    (`label`, `index`) are passed on.

    `draws_BK` are uniform numbers in [0, 1) on the CPU, `DRAWS` an image; None: torch's generator.

    Raises:
        ValueError: an entry is no map of the size of the images.
    """
    images = batch["image"]
    if augment == "none" or len(images) == 0:
        return dict(batch)
    maps = {name: value for name, value in batch.items() if name != "image" and value.ndim > 1}
    for name, value in maps.items():
        if value.ndim < 3 or value.shape[-2:] != images.shape[-2:] or len(value) != len(images):
            raise ValueError(
                f"data.augment is {augment!r}, but {name} has the shape {tuple(value.shape)} and "
                f"the images {tuple(images.shape)}: a map that moves with them must have their "
                "height and width. Read it at their size, or use augment: none."
            )
    draws_KB = (torch.rand(len(images), DRAWS) if draws_BK is None else draws_BK).T
    source_BP, inside_BP = _moves(draws_KB, images.shape, crops=augment != "flip")
    source_BP = source_BP.to(images.device)
    moved = {name: _take(value, source_BP) for name, value in {"image": images, **maps}.items()}
    if inside_BP is not None:
        outside = ~inside_BP.to(images.device).view(len(images), 1, *images.shape[-2:])
        for name in maps:
            flat = moved[name].view(len(images), -1, *images.shape[-2:])
            flat.masked_fill_(outside, 0)
    if augment == "flip_crop_color":
        moved["image"] = recolour(moved["image"], *_colours(draws_KB))
    return {**batch, **moved}


def recolour(
    images: Tensor, brightness_B: Tensor, contrast_B: Tensor, saturation_B: Tensor, turns_B: Tensor
) -> Tensor:
    """uint8 images (B, 3, H, W) with colours changed, each by its own factors; 1 changes nothing.

    Brightness scales all values, contrast the distance from the image's mean grey, saturation the
    distance from each pixel's grey, and `turns_B` rotates the hue by that part of a full turn at
    equal luma. All four are one affine map of RGB an image, clamped once at the end.
    """
    device, size = images.device, len(images)
    yiq = torch.tensor(_YIQ)
    angle_B, zero_B = 2 * math.pi * turns_B, torch.zeros(size)
    cos_B, sin_B = saturation_B * angle_B.cos(), saturation_B * angle_B.sin()
    rows = ((zero_B + 1, zero_B, zero_B), (zero_B, cos_B, -sin_B), (zero_B, sin_B, cos_B))
    chroma_B33 = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    colours_B33 = torch.linalg.inv(yiq) @ chroma_B33 @ yiq
    matrix_B33 = ((brightness_B * contrast_B).view(-1, 1, 1) * colours_B33).to(device)
    values_B3P = images.flatten(2).float()
    grey_B = values_B3P.mean(dim=2) @ yiq[0].to(device)
    offset_B = grey_B * (brightness_B * (1 - contrast_B)).to(device)
    changed = torch.baddbmm(offset_B.view(-1, 1, 1), matrix_B33, values_B3P)
    return changed.round_().clamp_(0, 255).to(torch.uint8).view(images.shape)


def _moves(draws_KB: Tensor, shape: torch.Size, *, crops: bool) -> tuple[Tensor, Tensor | None]:
    """Where each pixel comes from, (B, H * W) into its image, and whether it is in the frame."""
    size, (height, width) = shape[0], shape[-2:]
    mirrored_B1 = draws_KB[0][:, None] < 0.5
    rows_BH, columns_BW = (torch.arange(n).expand(size, n) for n in (height, width))
    inside_BP = None
    if crops:
        rows_BH, inside_BH = _shift(rows_BH, draws_KB[1])
        columns_BW, inside_BW = _shift(columns_BW, draws_KB[2])
        inside_BP = (inside_BH[:, :, None] & inside_BW[:, None]).flatten(1)
    columns_BW = torch.where(mirrored_B1, width - 1 - columns_BW, columns_BW)
    return (rows_BH[:, :, None] * width + columns_BW[:, None]).flatten(1), inside_BP


def _shift(places_BN: Tensor, draw_B: Tensor) -> tuple[Tensor, Tensor]:
    """Places shifted by a draw for each image, reflected at the border; which ones lay inside."""
    last, most = places_BN.shape[1] - 1, places_BN.shape[1] // _SHIFT
    steps_B = (draw_B * (2 * most + 1)).long().clamp_(max=2 * most) - most
    shifted_BN = places_BN + steps_B[:, None]
    inside_BN = (shifted_BN >= 0) & (shifted_BN <= last)
    return last - (last - shifted_BN.abs()).abs(), inside_BN


def _take(value: Tensor, source_BP: Tensor) -> Tensor:
    """The pixels of images or maps (B, ..., H, W) at these places of each; a copy."""
    flat_BCP = value.reshape(len(value), -1, source_BP.shape[1])
    source_BCP = source_BP[:, None].expand(-1, flat_BCP.shape[1], -1)
    return flat_BCP.gather(2, source_BCP).view(value.shape)


def _colours(draws_KB: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Brightness, contrast and saturation factors and hue turns, (B,) each."""
    spread_4B = 2 * draws_KB[3:] - 1
    brightness_B, contrast_B, saturation_B = 1 + _FACTORS * spread_4B[:3]
    return brightness_B, contrast_B, saturation_B, _HUE_TURNS * spread_4B[3]
