"""Augment a whole batch on its device: each image with its own draws, its maps with it.

Shapes: B images, C channels, H height, W width
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.recipe import GREY

__all__ = [
    "Augment",
    "augment_batch",
    "check_augment",
    "check_box_augment",
    "draws_needed",
    "recolour",
    "resizes",
]

Augment = Literal[
    "none", "flip", "flip_crop", "flip_crop_color", "flip_resize_crop", "flip_resize_crop_color"
]

_DRAWS = 7  # mirror, two shifts, four of colour; one more for the size

_SHIFT = 8  # the window moves by up to 1/8 of the size
_FACTORS = 0.2  # brightness, contrast and saturation are scaled by 1 +- this
_HUE_TURNS = 0.03
_SCALES = (0.5, 2.0)
#: What fills maps outside of the frame, if not 0; an image is `GREY` there.
_OUTSIDE = {"mask": 255}
#: Entries that are no maps, but numbers of each box or of the image.
_NO_MAPS = ("image", "size", "boxes", "box_label", "box_crowd", "own_size")
_LEAST_SHARE = 0.25  # of a box that must remain
_PLACES = 8  # that are tried for a window with a box
#: Steps from one such place to the next, in shares: they spread evenly over the picture.
_STEPS = (0.7548776662, 0.5698402910)  # Roberts 2018, "The unreasonable effectiveness of R2"

#: RGB to luma and two axes of chroma (NTSC's YIQ); grey has no chroma.
_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


def check_augment(name: str) -> None:
    """Raises ValueError for an unknown augmentation."""
    if name not in get_args(Augment):
        raise ValueError(f"augment is {name!r}; use one of {', '.join(get_args(Augment))}.")


def check_box_augment(augment: Augment) -> None:
    """Raises ValueError for an augmentation that does not suit boxes."""
    if "crop" in augment and not resizes(augment):
        raise ValueError(
            f"data.augment is {augment}, which reflects images at the border: objects would show "
            "there without boxes. Use flip, flip_resize_crop or flip_resize_crop_color."
        )


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

    `boxes` (B, N, 4) move with their image, and are clipped. Of which less than a quarter remains
    are dropped: zeros, with `box_label` -1. If an image has boxes, other windows are tried until
    one shows one. With `size` (B, 2), the filling of an image stays where it is.

    `draws_BK` are uniform numbers in [0, 1) on the CPU, `draws_needed` an image; None: torch's
    generator.

    Raises:
        ValueError: an entry is no map of the size of the images, a depth is to be scaled, or boxes
            are to be reflected.
    """
    images = batch["image"]
    if augment == "none" or len(images) == 0:
        return dict(batch)
    sizes = _shown_sizes(batch)
    maps = {name: value for name, value in batch.items() if name not in _NO_MAPS and value.ndim > 1}
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
        cuts = _cuts(batch, draws_KB, sizes, (window[0], window[1]))
        moved = _resized_crops({"image": images, **maps}, draws_KB, cuts, (window[0], window[1]))
        if "boxes" in batch:
            moved |= _cut_boxes(batch, draws_KB, cuts)
        if augment.endswith("color"):
            moved["image"] = recolour(moved["image"], *_colours(draws_KB))
        return {name: moved.get(name, value) for name, value in batch.items() if name != "size"}
    if "boxes" in batch:
        check_box_augment(augment)
    source_BP, inside_BP = _moves(draws_KB, images.shape, sizes, crops=augment != "flip")
    source_BP = source_BP.to(images.device)
    moved = {name: _take(value, source_BP) for name, value in {"image": images, **maps}.items()}
    if inside_BP is not None:
        outside = ~inside_BP.to(images.device).view(len(images), 1, *images.shape[-2:])
        for name in maps:
            flat = moved[name].view(len(images), -1, *images.shape[-2:])
            flat.masked_fill_(outside, _OUTSIDE.get(name, 0))
    if augment == "flip_crop_color":
        moved["image"] = recolour(moved["image"], *_colours(draws_KB))
    if "boxes" in batch:
        moved["boxes"] = _mirrored_boxes(batch, draws_KB, sizes)
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
    cuts: Sequence[tuple[_Cut, _Cut]],
    window: tuple[int, int],
) -> dict[str, Tensor]:
    """Images and maps (B, ..., H, W), each scaled and cut to `window`, and maybe mirrored."""
    made = {name: _blank(name, value, window) for name, value in pictures.items()}
    for row, (draw, (down, across)) in enumerate(zip(draws_KB[0].tolist(), cuts, strict=True)):
        for name, value in pictures.items():
            source = value[row][..., down.source, across.source]
            size = (down.end - down.start, across.end - across.start)
            scaled = _scaled(source, size, smooth=name == "image")
            if draw < 0.5:
                scaled = scaled.flip(-1)
            made[name][row][..., down.start : down.end, across.start : across.end] = scaled
    return made


def _cuts(
    batch: Mapping[str, Tensor],
    draws_KB: Tensor,
    sizes: Sequence[Sequence[int]],
    window: tuple[int, int],
) -> list[tuple[_Cut, _Cut]]:
    """What each image shows, down and across: the first place with a box, if it has any."""
    low, high = _SCALES
    boxed = {name: batch[name].cpu() for name in ("boxes", "box_label") if name in batch}
    found = []
    for row, draws in enumerate(draws_KB.T.tolist()):
        scale = low + (high - low) * draws[7]
        own_N4 = boxed["boxes"][row][boxed["box_label"][row] >= 0] if boxed else torch.zeros(0, 4)
        places = []
        for place in range(_PLACES if len(own_N4) else 1):
            down, across = (
                _cut(sizes[row][side], window[side], scale, (draws[1 + side] + place * step) % 1)
                for side, step in enumerate(_STEPS)
            )
            places.append((down, across))
        shows = (cuts for cuts in places if _cut_corners(own_N4, *cuts)[1].any())
        found.append(next(shows, places[0]))
    return found


def _cut_corners(corners_N4: Tensor, down: _Cut, across: _Cut) -> tuple[Tensor, Tensor]:
    """Corners in what a cut shows, clipped, and which of them keep enough of their box."""
    moved_N22 = corners_N4.view(-1, 2, 2)
    shown = torch.tensor([[cut.source.start, cut.source.stop] for cut in (across, down)])
    made = torch.tensor([[cut.start, cut.end] for cut in (across, down)])
    factors = (made[:, 1] - made[:, 0]) / (shown[:, 1] - shown[:, 0])
    scaled_N22 = (moved_N22 - shown[:, 0]) * factors + made[:, 0]
    clipped_N22 = scaled_N22.clamp(min=made[:, 0], max=made[:, 1])
    areas_2N = [(some[:, 1] - some[:, 0]).prod(dim=-1) for some in (clipped_N22, scaled_N22)]
    keeps_N = (areas_2N[0] > 0) & (areas_2N[0] >= _LEAST_SHARE * areas_2N[1])
    return clipped_N22.view(-1, 4), keeps_N


def _cut_boxes(
    batch: Mapping[str, Tensor], draws_KB: Tensor, cuts: Sequence[tuple[_Cut, _Cut]]
) -> dict[str, Tensor]:
    """The entries of boxes in what each image shows."""
    moved = {name: batch[name].cpu().clone() for name in _NO_MAPS[2:5] if name in batch}
    for row, (draw, (down, across)) in enumerate(zip(draws_KB[0].tolist(), cuts, strict=True)):
        corners_N4, keeps_N = _cut_corners(moved["boxes"][row], down, across)
        if draw < 0.5:
            turned = (across.start + across.end) - corners_N4[:, [2, 0]]
            corners_N4 = torch.stack(
                (turned[:, 0], corners_N4[:, 1], turned[:, 1], corners_N4[:, 3]), dim=1
            )
        keeps_N &= moved["box_label"][row] >= 0
        moved["boxes"][row] = corners_N4 * keeps_N[:, None]
        moved["box_label"][row][~keeps_N] = -1
        if "box_crowd" in moved:
            moved["box_crowd"][row] &= keeps_N
    return {name: value.to(batch[name].device) for name, value in moved.items()}


def _mirrored_boxes(
    batch: Mapping[str, Tensor], draws_KB: Tensor, sizes: Sequence[Sequence[int]]
) -> Tensor:
    """Boxes (B, N, 4) of images of which some are mirrored."""
    boxes = batch["boxes"]
    widths_B1 = torch.tensor([[size[1]] for size in sizes], device=boxes.device)
    x1, y1, x2, y2 = boxes.unbind(-1)
    turned = torch.stack((widths_B1 - x2, y1, widths_B1 - x1, y2), dim=-1)
    mirrored_B1 = (draws_KB[0] < 0.5).to(boxes.device)[:, None]
    moves_BN = mirrored_B1 & (batch["box_label"] >= 0)
    return torch.where(moves_BN[..., None], turned, boxes)


def _shown_sizes(batch: Mapping[str, Tensor]) -> list[tuple[int, int]]:
    """Height and width of what shows the picture in each image, less the filling of a batch."""
    images = batch["image"]
    high, wide = int(images.shape[-2]), int(images.shape[-1])
    if "size" in batch:
        return [(size[0], size[1]) for size in batch["size"].tolist()]
    return [(high, wide)] * len(images)


def _blank(name: str, value: Tensor, window: tuple[int, int]) -> Tensor:
    made = value.new_full((*value.shape[:-2], *window), _OUTSIDE.get(name, 0))
    if name == "image":
        made += torch.tensor(GREY, dtype=made.dtype, device=made.device).view(3, 1, 1)
    return made


class _Cut(NamedTuple):
    """Along one side: which pixels are shown, and where that begins and ends."""

    source: slice
    start: int
    end: int


def _cut(whole: int, window: int, scale: float, draw: float) -> _Cut:
    scaled = max(1, round(whole * scale))
    if scaled <= window:
        first = int(draw * (window - scaled + 1))
        return _Cut(slice(0, whole), first, first + scaled)
    pixels = min(whole, max(1, round(window / scale)))
    first = int(draw * (whole - pixels + 1))
    return _Cut(slice(first, first + pixels), 0, window)


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


def _moves(
    draws_KB: Tensor, shape: torch.Size, sizes: Sequence[Sequence[int]], *, crops: bool
) -> tuple[Tensor, Tensor | None]:
    """Where each pixel comes from, (B, H * W) into its image, and whether it is in the frame."""
    size, (height, width) = shape[0], shape[-2:]
    mirrored_B1 = draws_KB[0][:, None] < 0.5
    rows_BH, columns_BW = (torch.arange(n).expand(size, n) for n in (height, width))
    inside_BP = None
    if crops:
        rows_BH, inside_BH = _shift(rows_BH, draws_KB[1])
        columns_BW, inside_BW = _shift(columns_BW, draws_KB[2])
        inside_BP = (inside_BH[:, :, None] & inside_BW[:, None]).flatten(1)
    shown_B1 = torch.tensor([[shown[1]] for shown in sizes])
    turned_B1 = mirrored_B1 & (columns_BW < shown_B1)  # the filling beside it stays
    columns_BW = torch.where(turned_B1, shown_B1 - 1 - columns_BW, columns_BW)
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
