"""Augmentation of a whole batch on its device, each image on its own draw.

Shapes: B images, H height, W width
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Augment", "augment_batch", "check_augment"]

Augment = Literal["none", "flip", "flip_crop"]


def check_augment(name: str) -> None:
    """Raises ValueError for an unknown augmentation."""
    if name not in get_args(Augment):
        raise ValueError(f"augment is {name!r}; use one of {', '.join(get_args(Augment))}.")


def augment_batch(images: Tensor, *, augment: Augment) -> Tensor:
    """Augmented copy of uint8 images (B, 3, H, W); shape, dtype and device stay.

    `flip` mirrors each image with probability 1/2; `flip_crop` also shifts it by up to an eighth of
    its size, with reflected borders. Both only move pixels, so no value is interpolated.
    """
    if augment == "none" or len(images) == 0:
        return images
    height, width = images.shape[-2:]
    with torch.no_grad():
        moved: Tensor = images.float()
        if augment == "flip_crop":
            # Padded here: what two numbers mean to RandomCrop's padding depends on the version.
            rows, columns = height // 8, width // 8
            moved = functional.pad(moved, (columns, columns, rows, rows), mode="reflect")
        moved = _pipeline(augment, height, width)(moved)
    return moved.round_().clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=16)
def _pipeline(augment: Augment, height: int, width: int) -> Any:
    """kornia's batched pipeline; imported here because it takes a second and few runs need it."""
    import kornia.augmentation as K

    steps: list[Any] = [K.RandomHorizontalFlip(p=0.5)]
    if augment == "flip_crop":
        steps.append(K.RandomCrop((height, width), cropping_mode="slice", resample="nearest"))
    return torch.nn.Sequential(*steps)
