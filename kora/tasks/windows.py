"""A sliding window over one image.

Shapes: K classes, H and W pixels of the image, h and w of a window
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kora.backbone.images import resized

__all__ = ["averaged_windows", "covering", "starts"]

Size = tuple[int, int]
_AT_ONCE = 8  # windows in a pass


def covering(image_3HW: Tensor, window: Size, scale: float, interpolation: str) -> Tensor:
    """The image in [0, 1], scaled to cover the window times `scale`, and at least the window."""
    height, width = image_3HW.shape[-2:]
    factor = scale * max(window[0] / height, window[1] / width)
    size = (max(window[0], round(height * factor)), max(window[1], round(width * factor)))
    return resized(image_3HW[None], size, interpolation)[0]


def starts(length: int, window: int, stride: float) -> list[int]:
    """Where windows begin along a side: every `stride` windows, the last so that it ends with it.

    The first begins at 0, and they cover every pixel.
    """
    step = max(1, int(stride * window))
    count = math.ceil((length - window) / step) + 1
    return [min(number * step, length - window) for number in range(count)]


def averaged_windows(
    model: Callable[[Tensor], Tensor], image_3HW: Tensor, window: Size, stride: float
) -> Tensor:
    """The mean (K, H, W), float32, of the logits of all windows that see a pixel."""
    height, width = image_3HW.shape[-2:]
    corners = [
        (top, left)
        for top in starts(height, window[0], stride)
        for left in starts(width, window[1], stride)
    ]
    total_KHW: Tensor | None = None
    seen_HW = image_3HW.new_zeros(height, width)
    for first in range(0, len(corners), _AT_ONCE):
        some = corners[first : first + _AT_ONCE]
        crops = [image_3HW[:, t : t + window[0], x : x + window[1]] for t, x in some]
        logits = model(torch.stack(crops)).float()
        if logits.shape[-2:] != window:
            logits = F.interpolate(logits, window, mode="bilinear", align_corners=False)
        if total_KHW is None:
            total_KHW = logits.new_zeros(logits.shape[1], height, width)
        for (top, left), of_window in zip(some, logits, strict=True):
            total_KHW[:, top : top + window[0], left : left + window[1]] += of_window
            seen_HW[top : top + window[0], left : left + window[1]] += 1
    assert total_KHW is not None
    return total_KHW / seen_HW
