"""Augment a whole batch on its device: each image with its own draws, its maps with it.

Shapes: B images, C channels, H height, W width
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Augment", "augment_batch", "check_augment", "draws_needed", "recolour", "resizes"]

Augment = Literal[
    "none", "flip", "flip_crop", "flip_crop_color", "flip_resize_crop", "flip_resize_crop_color"
]

_DRAWS = 7  # mirror, two shifts, four of colour; one more for the size

_SHIFT = 8  # the window moves by up to 1/8 of the size
_FACTORS = 0.2  # brightness, contrast and saturation are scaled by 1 +- this
_HUE_TURNS = 0.03
_SCALES = (0.5, 2.0)
#: What fills an image and its maps outside of the frame, if not 0.
_GREY = (124, 116, 104)  # the mean of ImageNet, which backbones normalise to nearly 0
_OUTSIDE = {"mask": 255}

#: RGB to luma and two axes of chroma (NTSC's YIQ); grey has no chroma.
_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


def check_augment(name: str) -> None:
    """Raises ValueError for an unknown augmentation."""
    if name not in get_args(Augment):
        raise ValueError(f"augment is {name!r}; use one of {', '.join(get_args(Augment))}.")


def resizes(augment: Augment) -> bool:
    """Whether it changes the size of what an image shows, and crops."""
    return "resize" in augment


def draws_needed(augment: Augment) -> int:
    """Numbers that an image needs."""
    return _DRAWS + resizes(augment)


def augment_batch(
    batch: Mapping[str, Tensor],
    *,
    augment: Augment,
    draws_BK: Tensor | None = None,
    crop: tuple[int, int] | None = None,
) -> dict[str, Tensor]:
    """Augmented copy of a batch: `image` uint8 (B, 3, H, W), and maps (B, H, W) or (B, C, H, W).

    `flip` mirrors each image with probability 1/2; `flip_crop` also shifts it by up to an eighth of
    its size; `flip_crop_color` also changes its brightness, contrast, saturation and hue mildly.
    The maps of an image move with it. Pixels are only moved and never interpolated: the focal
    length stays, and with it what a depth in metres looks like.

    `flip_resize_crop` and `flip_resize_crop_color` scale each image by 0.5 to 2 and cut a window of
    `crop` (height, width; None: that of the batch) out of it, at a random place. Images are
    interpolated, masks are not. Images of several sizes come padded, with `size` (B, 2).

    Where the window leaves the frame, an image is reflected (grey, if it was scaled), and a map is
    0, a depth not measured; a `mask` is 255, which is ignored. A reflected map would claim geometry
    that nobody saw. Entries with one axis (`label`, `index`) are passed on.

    `draws_BK` are uniform numbers in [0, 1) on the CPU, `draws_needed` an image; None: torch's
    generator.

    Raises:
        ValueError: an entry is no map of the size of the images, or a depth is to be scaled.
    """
    images = batch["image"]
    if augment == "none" or len(images) == 0:
        return dict(batch)
    sizes = batch.get("size")
    maps = {
        name: value
        for name, value in batch.items()
        if name not in ("image", "size") and value.ndim > 1
    }
    for name, value in maps.items():
        if value.ndim < 3 or value.shape[-2:] != images.shape[-2:] or len(value) != len(images):
            raise ValueError(
                f"data.augment is {augment!r}, but {name} has the shape {tuple(value.shape)} and "
                f"the images {tuple(images.shape)}: a map that moves with them must have their "
                "height and width. Read it at their size, or use augment: none."
            )
    draws = torch.rand(len(images), draws_needed(augment)) if draws_BK is None else draws_BK
    draws_KB = draws.T
    if resizes(augment):
        if "depth_m" in maps:
            raise ValueError(
                f"data.augment is {augment!r}, which scales images: a depth in metres would no "
                "longer fit what is seen. Use flip, flip_crop or flip_crop_color."
            )
        window = tuple(images.shape[-2:]) if crop is None else crop
        moved = _resized_crops({"image": images, **maps}, draws_KB, sizes, (window[0], window[1]))
        if augment.endswith("color"):
            moved["image"] = recolour(moved["image"], *_colours(draws_KB))
        return {name: moved.get(name, value) for name, value in batch.items() if name != "size"}
    source_BP, inside_BP = _moves(draws_KB, images.shape, crops=augment != "flip")
    source_BP = source_BP.to(images.device)
    moved = {name: _take(value, source_BP) for name, value in {"image": images, **maps}.items()}
    if inside_BP is not None:
        outside = ~inside_BP.to(images.device).view(len(images), 1, *images.shape[-2:])
        for name in maps:
            flat = moved[name].view(len(images), -1, *images.shape[-2:])
            flat.masked_fill_(outside, _OUTSIDE.get(name, 0))
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


def _resized_crops(
    pictures: Mapping[str, Tensor],
    draws_KB: Tensor,
    sizes: Tensor | None,
    window: tuple[int, int],
) -> dict[str, Tensor]:
    """Images and maps (B, ..., H, W), each scaled and cut to `window`, and maybe mirrored."""
    made = {name: _blank(name, value, window) for name, value in pictures.items()}
    low, high = _SCALES
    for row, draws in enumerate(draws_KB.T.tolist()):
        image = pictures["image"][row]
        whole = image.shape[-2:] if sizes is None else sizes[row].tolist()
        scale = low + (high - low) * draws[7]
        top, from_rows, to_rows = _cut(whole[0], window[0], scale, draws[1])
        left, from_columns, to_columns = _cut(whole[1], window[1], scale, draws[2])
        for name, value in pictures.items():
            source = value[row][..., from_rows, from_columns]
            size = (to_rows - top, to_columns - left)
            scaled = _scaled(source, size, smooth=name == "image")
            if draws[0] < 0.5:
                scaled = scaled.flip(-1)
            made[name][row][..., top:to_rows, left:to_columns] = scaled
    return made


def _blank(name: str, value: Tensor, window: tuple[int, int]) -> Tensor:
    made = value.new_full((*value.shape[:-2], *window), _OUTSIDE.get(name, 0))
    if name == "image":
        made += torch.tensor(_GREY, dtype=made.dtype, device=made.device).view(3, 1, 1)
    return made


def _cut(whole: int, window: int, scale: float, draw: float) -> tuple[int, slice, int]:
    """Along one side: where the result begins, which pixels become it, and where it ends."""
    scaled = max(1, round(whole * scale))
    if scaled <= window:
        first = int(draw * (window - scaled + 1))
        return first, slice(0, whole), first + scaled
    pixels = min(whole, max(1, round(window / scale)))
    first = int(draw * (whole - pixels + 1))
    return 0, slice(first, first + pixels), window


def _scaled(source: Tensor, size: tuple[int, int], *, smooth: bool) -> Tensor:
    """(..., H, W) at another size: interpolated and antialiased, or by the nearest pixel."""
    if source.shape[-2:] == size:
        return source
    flat = source.reshape(1, -1, *source.shape[-2:]).float()
    if smooth:
        flat = F.interpolate(flat, size, mode="bilinear", antialias=True, align_corners=False)
        flat = flat.round_().clamp_(0, 255)
    else:
        flat = F.interpolate(flat, size, mode="nearest-exact")
    return flat.to(source.dtype).reshape(*source.shape[:-2], *size)


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
    spread_4B = 2 * draws_KB[3:_DRAWS] - 1
    brightness_B, contrast_B, saturation_B = 1 + _FACTORS * spread_4B[:3]
    return brightness_B, contrast_B, saturation_B, _HUE_TURNS * spread_4B[3]
