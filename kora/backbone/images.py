"""Images as input of a backbone: checks, resizing and normalisation.

Shapes: B images, H and W pixels of an image, h and w those at which the backbone runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["check_images", "chosen_normalisation", "resized"]


def chosen_normalisation(
    mean: Sequence[float] | None, std: Sequence[float] | None
) -> dict[str, list[float]]:
    """Mean and standard deviation that replace those of the weights; empty if none are given.

    Raises:
        ValueError: One alone, not three finite numbers in RGB, a mean outside [0, 1], or a
            standard deviation that is not above 0.
    """
    given: Mapping[str, Any] = {"mean": mean, "std": std}
    if mean is None and std is None:
        return {}
    for key, value in given.items():
        if value is None:
            raise ValueError(
                f"model.backbone.{key} is missing: mean and std replace those of the weights "
                "together. Give both, three numbers each, or neither."
            )
        numbers = list(value) if isinstance(value, Sequence) else [value]
        wanted = "in [0, 1]" if key == "mean" else "above 0"
        if (
            len(numbers) != 3
            or not all(math.isfinite(number) for number in numbers)
            or (key == "mean" and not all(0 <= number <= 1 for number in numbers))
            or (key == "std" and not all(number > 0 for number in numbers))
        ):
            raise ValueError(
                f"model.backbone.{key}={value}: expected three numbers {wanted}, for red, green "
                "and blue of images in [0, 1], such as [0.5, 0.5, 0.5]."
            )
    return {key: [float(number) for number in value] for key, value in given.items()}


def check_images(images: Tensor) -> None:
    """Refuse anything but a batch of raw RGB images.

    Raises:
        ValueError: For another shape, type or range.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"Images have shape {tuple(images.shape)}; expected (batch, 3, height, width) in RGB. "
            "Convert greyscale or RGBA images to RGB in the data module."
        )
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(
            f"Images have dtype {images.dtype}; expected uint8 in [0, 255] or floating point in "
            "[0, 1]."
        )
    # On a GPU this check would stall the stream, and a compiled graph cannot contain it.
    looks = images.device.type == "cpu" and not torch.compiler.is_compiling()
    if images.is_floating_point() and looks:
        low, high = images.min().item(), images.max().item()
        if not (low >= 0 and high <= 1):  # also catches NaN
            raise ValueError(
                f"Floating-point images range from {low:.3g} to {high:.3g}; expected [0, 1]. The "
                "backbone normalises them itself: pass raw images, not normalised ones."
            )


def resized(images: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """(B, 3, H, W) images in [0, 1], resized without a crop to `size` (h, w), antialiased.

    Raises:
        ValueError: As `check_images`.
    """
    check_images(images)
    x = images.float().div_(255) if images.dtype == torch.uint8 else images.float()
    if x.shape[-2:] == size:
        return x
    fitted = F.interpolate(x, size, mode=interpolation, antialias=True, align_corners=False)
    return fitted.clamp_(0, 1)  # bicubic overshoots
