"""Layout of a synthetic scene: room, camera, light and solids, from counter-based numbers.

Every number is a hash of (seed, split, stream, index, count of earlier numbers), so a scene depends
on nothing but its own index. Angles are rational points of the circle, which keeps the numbers
equal on every machine.

Shapes: n scenes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from datamodules.sampling import mix64
from datamodules.scenes.solids import KINDS, Float, Solids, Vec, support, unit

__all__ = ["CLASS_NAMES", "Draws", "Scenes", "sample_scenes"]

SceneSplit = Literal["train", "test"]

#: Class 2 k is a plain solid of kind k, class 2 k + 1 a striped one.
CLASS_NAMES = [f"{pattern} {kind}" for kind in KINDS for pattern in ("plain", "striped")]

_LAYOUT_STREAM = 0  # the streams of the styles start at 1
_BOX, _CYLINDER, _CONE, _TORUS = (KINDS.index(k) for k in ("box", "cylinder", "cone", "torus"))
_WORD = (1 << 64) - 1


class Draws:
    """Counter-based random numbers, one stream an index; each call gives (n,) values."""

    def __init__(
        self, indices: NDArray[np.int64], stream: int, *, seed: int, split: SceneSplit
    ) -> None:
        head = np.array([seed & _WORD], dtype=np.uint64)
        for part in (("train", "test").index(split), stream):
            head = mix64(head + np.uint64(0x9E3779B97F4A7C15) * np.uint64(part + 1))
        self._key = mix64(head + mix64(indices.astype(np.uint64)))
        self._count = 0

    def words(self) -> NDArray[np.uint64]:
        """Uniform 64-bit words (n,)."""
        self._count += 1
        step = np.uint64((self._count * 0x9E3779B97F4A7C15) & _WORD)
        return mix64(self._key + step)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> NDArray[np.float64]:
        """Uniform numbers (n,) in [low, high)."""
        fraction = (self.words() >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return low + (high - low) * fraction

    def sign(self) -> NDArray[np.float64]:
        """-1 or 1, (n,)."""
        return np.where(self.uniform() < 0.5, -1.0, 1.0)


@dataclass(frozen=True)
class Scenes:
    """n scenes; lengths in metres, vectors as three arrays (n,), float32.

    `solids[0]` is the labelled one. `eye` is the camera, `right`, `up` and `ahead` its axes, and
    `tangent_n` the tangent of half its angle of view. `low` and `high` are the room's corners.
    The stripes of solid 0 are the sign of floor(2 x count x (local . stripe) + phase).
    """

    label_n: NDArray[np.int64]
    solids: tuple[Solids, ...]
    eye: Vec
    right: Vec
    up: Vec
    ahead: Vec
    tangent_n: Float
    low: Vec
    high: Vec
    lamp: Vec
    stripe: Vec
    phase_n: Float


def sample_scenes(indices: NDArray[np.int64], *, seed: int, split: SceneSplit = "train") -> Scenes:
    """The scenes of these indices; the class of index i is i mod 12."""
    draws = Draws(indices, _LAYOUT_STREAM, seed=seed, split=split)
    label = indices % len(CLASS_NAMES)
    kind = label // 2
    size = draws.uniform(0.3, 0.6)
    axes = _orientation(draws, kind)
    half = _half_sizes(draws, kind, size)
    bound = np.where(
        (kind == _TORUS) | (kind == 0),
        np.maximum(np.maximum(half[0], half[1]), half[2]),
        np.sqrt(half[0] * half[0] + half[1] * half[1] + half[2] * half[2]),
    )
    zero = np.zeros_like(size)
    loose = Solids(kind, (zero, zero, zero), axes, half, bound)
    rest = support(loose, (zero, zero - 1, zero))

    tangent = draws.uniform(0.5, 0.62)
    distance = size / (2 * tangent * draws.uniform(0.17, 0.29))
    side = draws.uniform(-0.35, 0.35) * distance
    eye: Vec = (zero, draws.uniform(0.8, 1.5), zero)
    centre: Vec = (side, rest, np.sqrt(distance * distance - side * side))
    low: Vec = (
        np.minimum(centre[0] - bound, -0.6) - draws.uniform(0.1, 1.5),
        zero,
        zero - draws.uniform(0.3, 1.5),
    )
    high: Vec = (
        np.maximum(centre[0] + bound, 0.6) + draws.uniform(0.1, 1.5),
        draws.uniform(2.3, 3.0),
        centre[2] + bound + draws.uniform(0.2, 2.5),
    )
    main = Solids(kind, centre, axes, half, bound)
    others = [_furniture(draws, main, low, high, wall) for wall in (-1.0, 1.0)]

    look = draws.uniform(-0.2, 0.2) * distance, draws.uniform(-0.17, 0.17) * distance
    ahead = unit((centre[0] - eye[0] + look[0], centre[1] - eye[1] + look[1], centre[2] - eye[2]))
    level = unit((ahead[2], zero, -ahead[0]))
    above = _cross(ahead, level)
    cos, sin = _circle(draws.uniform(-0.06, 0.06))
    right = tuple(cos * a + sin * b for a, b in zip(level, above, strict=True))
    up = tuple(cos * b - sin * a for a, b in zip(level, above, strict=True))

    reach = draws.uniform(0.15, 0.85)
    lamp: Vec = (
        low[0] + 0.2 + reach * (high[0] - low[0] - 0.4),
        high[1] - draws.uniform(0.05, 0.4),
        draws.uniform(0.1, 0.75) * centre[2],
    )
    stripe = unit(
        (
            draws.uniform(0.5, 1) * draws.sign(),
            draws.uniform(0.5, 1),
            draws.uniform(0.5, 1) * draws.sign(),
        )
    )
    count = draws.uniform(2.2, 3.4)
    return Scenes(
        label,
        tuple(_single(s) for s in (main, *others)),
        _vec32(eye),
        _vec32(right),
        _vec32(up),
        _vec32(ahead),
        tangent.astype(np.float32),
        _vec32(low),
        _vec32(high),
        _vec32(lamp),
        _vec32((stripe[0] * count, stripe[1] * count, stripe[2] * count)),
        draws.uniform().astype(np.float32),
    )


def _orientation(draws: Draws, kind: NDArray[np.int64]) -> tuple[Vec, Vec, Vec]:
    """Turn about the solid's own axis, then tilt, then turn about the vertical."""
    lying = (draws.uniform() < 0.3) & ((kind == _CYLINDER) | (kind == _CONE))
    torus = kind == _TORUS
    tilt = draws.uniform(-0.12, 0.12)
    tilt = np.where(torus, draws.uniform(-0.85, -0.15), tilt)  # its hole faces the camera
    tilt = np.where(lying, draws.uniform(0.75, 1.0) * draws.sign(), tilt)
    cos, sin = _circle(tilt)
    c1, s1 = _circle(draws.uniform(-1, 1))
    turn = draws.uniform(-1, 1)
    c2, s2 = _circle(np.where(torus | lying, 0.4 * turn, turn))
    c2, s2 = np.where(lying, s2, c2), np.where(lying, c2, s2)  # a lying solid shows its side
    zero = np.zeros_like(cos)
    # Axes after the first two turns, in the frame that the last one rotates about y.
    before = (
        (c1, s1 * sin, -s1 * cos),
        (zero, cos, sin),
        (s1, -c1 * sin, c1 * cos),
    )
    x, y, z = ((c2 * a[0] + s2 * a[2], a[1], c2 * a[2] - s2 * a[0]) for a in before)
    return x, y, z


def _half_sizes(draws: Draws, kind: NDArray[np.int64], size: NDArray[np.float64]) -> Vec:
    wide, tall, deep = draws.uniform(), draws.uniform(), draws.uniform()
    one = np.ones_like(size)
    x = [one, 0.65 + 0.3 * wide, 0.6 + 0.2 * wide, 0.75 + 0.2 * wide, 1.1 * one, 0.8 + 0.2 * wide]
    y = [one, 0.6 + 0.4 * tall, 0.75 + 0.35 * tall, 0.85 + 0.3 * tall, 1.1 * one, 0.8 + 0.35 * tall]
    z = [one, 0.65 + 0.3 * deep, x[2], x[3], 1.1 * one, x[5]]
    return tuple(size * np.choose(kind, options) for options in (x, y, z))  # type: ignore[return-value]


def _furniture(draws: Draws, main: Solids, low: Vec, high: Vec, wall: float) -> Solids:
    """A cabinet or a cushion at the left (-1) or right (1) wall, behind the labelled solid.

    Four images in ten lack it, and so do those in which it would touch or hide the labelled solid.
    """
    cushion = draws.uniform() < 0.4
    wide, tall, deep = draws.uniform(0.15, 0.4), draws.uniform(), draws.uniform(0.15, 0.35)
    high_half = np.where(cushion, 0.08 + 0.1 * tall, 0.25 + 0.6 * tall)
    floor_radius = np.sqrt(wide * wide + deep * deep)
    edge = high[0] if wall > 0 else low[0]
    x = edge - wall * (wide + draws.uniform(0.02, 0.5))
    z = high[2] - deep - draws.uniform(0.02, 0.6)
    gap_x, gap_z = x - main.centre[0], z - main.centre[2]
    clear = gap_x * gap_x + gap_z * gap_z > (main.bound_n + floor_radius) ** 2
    behind = (z - deep > 1.0) & (z > main.centre[2])
    there = clear & behind & (draws.uniform() < 0.6)
    one, zero = np.ones_like(x), np.zeros_like(x)
    bound = np.where(there, np.sqrt(floor_radius * floor_radius + high_half * high_half), 0)
    upright = ((one, zero, zero), (zero, one, zero), (zero, zero, one))
    kind = np.where(cushion, 0, _BOX)
    return Solids(kind, (x, high_half, z), upright, (wide, high_half, deep), bound)


def _circle(t: Float) -> tuple[Float, Float]:
    """Cosine and sine of twice the angle whose tangent is t."""
    scale = 1 + t * t
    return (1 - t * t) / scale, 2 * t / scale


def _cross(a: Vec, b: Vec) -> Vec:
    return (
        a[1] * b[2] - a[2] * b[1],
        a[2] * b[0] - a[0] * b[2],
        a[0] * b[1] - a[1] * b[0],
    )


def _vec32(vector: Vec | tuple[Float, ...]) -> Vec:
    x, y, z = (v.astype(np.float32) for v in vector)
    return x, y, z


def _single(solids: Solids) -> Solids:
    """The same solids in float32."""
    x, y, z = (_vec32(a) for a in solids.axes)
    return Solids(
        solids.kind_n,
        _vec32(solids.centre),
        (x, y, z),
        _vec32(solids.half),
        solids.bound_n.astype(np.float32),
    )
