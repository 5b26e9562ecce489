"""How a synthetic scene looks: palettes, light, wall patterns and the finish of each style.

Styles change appearance alone; geometry, depth and mask belong to the layout.

Shapes: n images, H height, W width, S surfaces (6 of the room, then the solids)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from datamodules.scenes.layout import Draws
from datamodules.scenes.solids import Float

__all__ = ["FLOOR", "SURFACES", "Look", "Style", "appearance", "finish"]

Style = Literal["studio", "paint", "night"]

#: Surfaces 0 to 5: left and right wall, floor, ceiling, wall behind the camera, wall ahead.
FLOOR = 2
#: Surfaces 6, 7, 8: the labelled solid and the furniture.
SURFACES = 9
_CEILING, _OBJECT = 3, 6
_GOLDEN32 = np.uint32(0x9E3779B1)


@dataclass(frozen=True)
class Look:
    """Materials and light of n images.

    Args:
        colour: (3, n, 2 S) linear RGB: first colour of each surface, then the second one that
            stripes and tiles use.
        tile_n: (2, n) size in metres of wall tiles, across and up; inf for none.
        light: (3, n) colour of the lamp.
        ambient: (3, n) light that comes from everywhere.
        shine_n: (n,) strength of highlights.
        noise_key_n: (n,) uint32.
    """

    colour: Float
    tile_n: Float
    light: Float
    ambient: Float
    shine_n: Float
    noise_key_n: NDArray[np.uint32]


def appearance(indices: NDArray[np.int64], style: Style, *, seed: int, split: str) -> Look:
    """Draw materials and light of these images."""
    stream = 1 + get_args(Style).index(style)
    draws = Draws(indices, stream, seed=seed, split=split)  # type: ignore[arg-type]
    n = len(indices)
    colour = np.zeros((3, n, 2 * SURFACES))

    def paint(surface: int, saturation: tuple[float, float], value: tuple[float, float]) -> None:
        colour[:, :, surface] = _rgb(
            draws.uniform(), draws.uniform(*saturation), draws.uniform(*value)
        )

    walls = {"studio": (0.02, 0.3), "paint": (0.3, 0.75), "night": (0.1, 0.5)}[style]
    solid = {"studio": (0.35, 0.95), "paint": (0.25, 0.9), "night": (0.1, 0.6)}[style]
    bright = {"studio": (0.55, 0.95), "paint": (0.45, 0.95), "night": (0.35, 0.7)}[style]
    paint(0, walls, bright)
    for same in (1, 4, 5):
        colour[:, :, same] = colour[:, :, 0]
    paint(FLOOR, (walls[0], walls[1] + 0.2), (0.35, 0.75))
    paint(_CEILING, (0, walls[1] / 2), bright)
    paint(_OBJECT, solid, (0.5, 0.95) if style != "night" else (0.4, 0.8))
    for furniture in (7, 8):
        paint(furniture, (walls[0], walls[1] + 0.25), (0.3, 0.8))

    # Second colours: walls a shade darker, the labelled solid another colour or dark or white.
    shade = draws.uniform(0.75, 0.92)[:, None]
    colour[:, :, SURFACES:] = colour[:, :, :SURFACES] * shade
    other = _rgb(draws.uniform(), draws.uniform(*solid), draws.uniform(0.1, 0.95))
    first = colour[:, :, _OBJECT]
    # At least this far apart in brightness, or stripes of equal grey would vanish.
    gap = _grey(other) - _grey(first)
    push = np.where(abs(gap) < 0.25, np.where(_grey(first) > 0.45, 0.25, 2.2), 1.0)
    other = np.clip(other * push + 0.05, 0, 1)
    keep = {"studio": 1.0, "paint": 0.85, "night": 0.95}[style]
    colour[:, :, SURFACES + _OBJECT] = first + keep * (other - first)

    tile = np.full((2, n), np.inf)
    if style == "night":
        tile[0] = draws.uniform(0.25, 0.7)
        tile[1] = np.where(draws.uniform() < 0.5, draws.uniform(0.2, 0.7), np.inf)
    tint = {"studio": (0.0, 0.25), "paint": (0.0, 0.3), "night": (0.3, 0.6)}[style]
    power = {"studio": (0.65, 1.1), "paint": (0.85, 1.1), "night": (0.65, 1.0)}[style]
    light = _rgb(draws.uniform(), draws.uniform(*tint), draws.uniform(*power))
    base = {"studio": (0.2, 0.4), "paint": (0.35, 0.5), "night": (0.12, 0.2)}[style]
    ambient = _rgb(draws.uniform(), draws.uniform(*tint), draws.uniform(*base))
    shine = draws.uniform(0, 0.35) * (style != "paint")
    return Look(
        (colour * colour).astype(np.float32),  # display values to linear light, gamma 2
        tile.astype(np.float32),
        light.astype(np.float32),
        ambient.astype(np.float32),
        shine.astype(np.float32),
        (draws.words() >> np.uint64(32)).astype(np.uint32),
    )


def finish(linear: Float, edge: NDArray[np.bool_], look: Look, style: Style) -> NDArray[np.uint8]:
    """Linear RGB (3, n, H, W) to bytes (n, 3, H, W); `edge` (n, H, W) marks outlines."""
    height, width = linear.shape[2:]
    rgb = np.sqrt(np.clip(linear, 0, 1))
    if style == "paint":
        blotch = _smooth_noise(look.noise_key_n, height, width) - np.float32(0.5)
        rgb = rgb + np.float32(0.14) * blotch
        steps = np.float32(6)
        rgb = np.floor(rgb * steps + np.float32(0.5)) / steps
        rgb = np.where(edge, rgb * np.float32(0.6), rgb)
    elif style == "studio":
        rgb = rgb + np.float32(0.012) * _noise(look.noise_key_n, height, width)
    else:
        grain = _noise(look.noise_key_n, height, width)
        rgb = rgb + np.float32(0.02) * grain
        for channel in range(3):
            key = look.noise_key_n + np.uint32(channel + 1)
            rgb[channel] += np.float32(0.02) * _noise(key, height, width)
        rgb = np.float32(0.03) + np.float32(0.8) * rgb
    out = np.clip(rgb * np.float32(255) + np.float32(0.5), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(out.transpose(1, 0, 2, 3))


def _rgb(hue: Float, saturation: Float, value: Float) -> Float:
    """HSV in [0, 1], each (n,), to RGB (3, n)."""
    channels = []
    for shift in (0.0, 4.0, 2.0):
        place = hue * 6 + shift
        place = place - 6 * np.floor(place / 6)
        ramp = np.clip(abs(place - 3) - 1, 0, 1)
        channels.append(value * (1 - saturation * (1 - ramp)))
    return np.stack(channels)


def _grey(rgb: Float) -> Float:
    grey: Float = 0.3 * rgb[0] + 0.6 * rgb[1] + 0.1 * rgb[2]
    return grey


def _hash32(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Finaliser of MurmurHash3."""
    x = x ^ (x >> np.uint32(16))
    x *= np.uint32(0x85EBCA6B)
    x ^= x >> np.uint32(13)
    x *= np.uint32(0xC2B2AE35)
    x ^= x >> np.uint32(16)
    return x


def _noise(key_n: NDArray[np.uint32], height: int, width: int) -> Float:
    """Nearly normal noise (n, H, W), mean 0 and deviation 1: the sum of four random bytes."""
    pixel = np.arange(height * width, dtype=np.uint32) * _GOLDEN32
    word = _hash32(_hash32(key_n)[:, None] + pixel)
    total = word & np.uint32(0xFF)
    for shift in (8, 16, 24):
        total += (word >> np.uint32(shift)) & np.uint32(0xFF)
    # Four uniform bytes: mean 4 x 127.5, variance 4 (256^2 - 1) / 12.
    scaled = (total.astype(np.float32) - np.float32(510)) / np.float32(147.8)
    return scaled.reshape(-1, height, width)


def _smooth_noise(key_n: NDArray[np.uint32], height: int, width: int) -> Float:
    """Bilinear noise (n, H, W) in [0, 1] on a grid of ten squares across."""
    cells = 10
    node = np.arange((cells + 1) * (cells + 1), dtype=np.uint32) * _GOLDEN32
    word = _hash32(_hash32(key_n + np.uint32(7))[:, None] + node) >> np.uint32(8)
    grid = word.astype(np.float32).reshape(-1, cells + 1, cells + 1) * np.float32(2.0**-24)
    for axis, size in ((1, height), (2, width)):
        place = (np.arange(size) + 0.5) * (cells / size)
        left = np.floor(place).astype(np.int64)
        weight = (place - left).astype(np.float32).reshape((-1, 1) if axis == 1 else (-1,))
        grid = grid.take(left, axis) * (1 - weight) + grid.take(left + 1, axis) * weight
    return grid
