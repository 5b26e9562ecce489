"""Colours of classes in masks: few that anybody can tell apart, then more.

Shapes: K classes, H and W pixels
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["IGNORED_COLOUR", "Colours", "coloured", "palette_image", "palette_of", "text_on"]

Colours = Sequence[Sequence[int]]

#: Those of Okabe and Ito (2008), without grey, which means: does not count.
_FIRST = (
    (86, 180, 233), (213, 94, 0), (0, 158, 115), (240, 228, 66), (0, 114, 178), (204, 121, 167),
    (230, 159, 0), (30, 30, 30),
)  # fmt: skip
IGNORED_COLOUR = (160, 160, 160)
_GOLDEN = 0.618033988749895  # turns of the hue between two further colours


def palette_of(num_classes: int, given: Colours | None = None) -> list[tuple[int, int, int]]:
    """A colour (red, green, blue) for each class: those `given`, else the same in every run."""
    if given is not None and len(given) == num_classes:
        return [(int(red), int(green), int(blue)) for red, green, blue in given]
    more = (
        colorsys.hsv_to_rgb(n * _GOLDEN % 1, 0.45 + 0.25 * (n % 3), 0.95 - 0.13 * (n % 5))
        for n in range(num_classes - len(_FIRST))
    )
    further = [tuple(round(255 * part) for part in colour) for colour in more]
    return [*_FIRST[:num_classes], *further]  # type: ignore[list-item]


def text_on(colour: Sequence[int]) -> str:
    """Black or white, whichever can be read on a colour (red, green, blue)."""
    red, green, blue = colour
    return "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 140 else "white"


def coloured(mask_HW: NDArray[Any], palette: Colours) -> NDArray[np.uint8]:
    """A mask in colours, uint8 (H, W, 3); grey where it does not count."""
    table = np.full((256, 3), IGNORED_COLOUR, dtype=np.uint8)
    table[: len(palette)] = palette
    colours: NDArray[np.uint8] = table[mask_HW]
    return colours


def palette_image(mask_HW: NDArray[np.uint8], palette: Colours) -> Image.Image:
    """A mask as an image whose values are the classes, and which viewers show in colours."""
    image = Image.fromarray(mask_HW).convert("P")
    image.frombytes(np.ascontiguousarray(mask_HW).tobytes())
    table = np.full((256, 3), IGNORED_COLOUR, dtype=np.uint8)
    table[: len(palette)] = palette
    image.putpalette(table.ravel().tolist())
    return image
