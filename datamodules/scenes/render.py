"""Small indoor scenes with class, metric depth and object mask, rendered on the CPU.

`render` is a pure function of (seed, split, style, index): neither the batch nor the machine nor
the number of threads changes a byte. Depth and mask do not depend on the style.

Shapes: n images, P = H W pixels
"""

from __future__ import annotations

from typing import get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from datamodules.scenes.layout import CLASS_NAMES, Scenes, SceneSplit, sample_scenes
from datamodules.scenes.solids import Float, Vec, dot, intersect, unit
from datamodules.scenes.styles import FLOOR, SURFACES, Look, Style, appearance, finish

__all__ = ["CLASS_NAMES", "MIN_SIZE", "Style", "render"]

#: Smallest image side at which a person can still name the classes.
MIN_SIZE = 32
_CHUNK = 16  # images at a time: the arrays of a chunk stay in the processor's cache
_OBJECT = 6  # surface of the labelled solid


def render(
    indices: ArrayLike,
    *,
    style: Style,
    seed: int,
    split: SceneSplit = "train",
    size: int = 64,
) -> dict[str, Tensor]:
    """Render the scenes of these indices.

    Returns:
        `image` uint8 (n, 3, size, size); `label` int64 (n,), index mod 12; `depth_m` float32
        (n, size, size), metres along the optical axis; `mask` uint8 (n, size, size), 0 for the
        room, 1 for the labelled solid, 2 and 3 for furniture.
    """
    index_n = np.asarray(indices, dtype=np.int64)
    assert split in get_args(SceneSplit), split
    assert index_n.ndim == 1, index_n.shape
    assert (index_n >= 0).all()
    n = len(index_n)
    image = np.empty((n, 3, size, size), dtype=np.uint8)
    depth = np.empty((n, size, size), dtype=np.float32)
    mask = np.empty((n, size, size), dtype=np.uint8)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for start in range(0, n, _CHUNK):
            rows = slice(start, start + _CHUNK)
            scenes = sample_scenes(index_n[rows], seed=seed, split=split)
            look = appearance(index_n[rows], style, seed=seed, split=split)
            image[rows], depth[rows], mask[rows] = _render_chunk(scenes, look, style, size)
    return {
        "image": torch.from_numpy(image),
        "label": torch.from_numpy(index_n % len(CLASS_NAMES)),
        "depth_m": torch.from_numpy(depth),
        "mask": torch.from_numpy(mask),
    }


def _render_chunk(
    scenes: Scenes, look: Look, style: Style, size: int
) -> tuple[NDArray[np.uint8], Float, NDArray[np.uint8]]:
    way = _camera_rays(scenes, size)
    t, surface, normal = _room(scenes, way)
    second = np.zeros(t.shape, dtype=bool)
    origin: Vec = (scenes.eye[0][:, None], scenes.eye[1][:, None], scenes.eye[2][:, None])
    for slot, solids in enumerate(scenes.solids):
        hits = intersect(solids, origin, way)
        nearer = np.flatnonzero(hits.t_m < t.ravel()[hits.flat_m])
        at = hits.flat_m[nearer]
        t.ravel()[at] = hits.t_m[nearer]
        surface.ravel()[at] = _OBJECT + slot
        for component, value in zip(normal, hits.normal, strict=True):
            component.ravel()[at] = value[nearer]
        second.ravel()[at] = False
        if slot == 0:
            row = at // t.shape[1]
            along = scenes.phase_n[row]
            for stripe, place in zip(scenes.stripe, hits.local, strict=True):
                along = along + stripe[row] * place[nearer]
            odd = (np.floor(along) % 2 == 1) & (scenes.label_n[row] % 2 == 1)
            second.ravel()[at] = odd
    point: Vec = tuple(o + t * d for o, d in zip(origin, way, strict=True))
    if np.isfinite(look.tile_n[0]).any():
        second |= _tiles(look, surface, point)
    linear = _shade(scenes, look, way, point, normal, surface, second)
    shape = (len(t), size, size)
    mask = np.maximum(surface, _OBJECT - 1) - (_OBJECT - 1)
    edge = _outline(surface.reshape(shape))
    image = finish(linear.reshape(3, *shape), edge, look, style)
    return image, t.reshape(shape), mask.astype(np.uint8).reshape(shape)


def _camera_rays(scenes: Scenes, size: int) -> Vec:
    """Directions (n, P) whose part along the optical axis is 1, so that t is the depth."""
    place = ((np.arange(size) + 0.5) * (2 / size) - 1).astype(np.float32)
    across = np.tile(place, size)
    down = np.repeat(place, size)
    x = scenes.tangent_n[:, None] * across
    y = -scenes.tangent_n[:, None] * down
    return tuple(  # type: ignore[return-value]
        a[:, None] + x * r[:, None] + y * u[:, None]
        for a, r, u in zip(scenes.ahead, scenes.right, scenes.up, strict=True)
    )


def _room(scenes: Scenes, way: Vec) -> tuple[Float, NDArray[np.int64], list[Float]]:
    """Distance, surface and inward normal where rays from inside meet the room; each (n, P)."""
    t = np.full(way[0].shape, np.inf, dtype=np.float32)
    surface = np.zeros(way[0].shape, dtype=np.int64)
    for axis, (eye, low, high) in enumerate(zip(scenes.eye, scenes.low, scenes.high, strict=True)):
        forward = way[axis] > 0
        room = np.where(forward, (high - eye)[:, None], (eye - low)[:, None])
        here = room / abs(way[axis])
        nearer = here < t
        t = np.where(nearer, here, t)
        surface = np.where(nearer, 2 * axis + forward, surface)
    sign = (1 - 2 * (surface % 2)).astype(np.float32)
    normal = [np.where(surface // 2 == axis, sign, np.float32(0)) for axis in range(3)]
    return t, surface, normal


def _tiles(look: Look, surface: NDArray[np.int64], point: Vec) -> NDArray[np.bool_]:
    """Where walls and floor show the second colour of their tiles."""
    across, up = look.tile_n[0][:, None], look.tile_n[1][:, None]
    u = np.where(surface < 2, point[2], point[0])
    v = np.where(surface == FLOOR, point[2], point[1])
    odd = (np.floor(u / across) + np.floor(v / up)) % 2 == 1
    tiled: NDArray[np.bool_] = odd & (surface < _OBJECT) & (surface != FLOOR + 1)
    return tiled


def _shade(
    scenes: Scenes,
    look: Look,
    way: Vec,
    point: Vec,
    normal: list[Float],
    surface: NDArray[np.int64],
    second: NDArray[np.bool_],
) -> Float:
    """Linear RGB (3, n, P): one lamp with cast shadows, ambient light, contact shadows."""
    normal_v: Vec = (normal[0], normal[1], normal[2])
    to_lamp: Vec = tuple(  # type: ignore[assignment]
        lamp[:, None] - p for lamp, p in zip(scenes.lamp, point, strict=True)
    )
    square = dot(to_lamp, to_lamp)
    facing = np.maximum(dot(normal_v, to_lamp), 0) / np.sqrt(square)
    offset: Vec = tuple(p + np.float32(0.01) * k for p, k in zip(point, normal, strict=True))  # type: ignore[assignment]
    lit = np.ones(square.shape, dtype=np.float32)
    for solids in scenes.solids:
        hits = intersect(solids, offset, to_lamp, normals=False)
        lit.ravel()[hits.flat_m[hits.t_m < 1]] = 0
    main = scenes.solids[0]
    x = point[0] - main.centre[0][:, None]
    z = point[2] - main.centre[2][:, None]
    near = (x * x + z * z) / (main.bound_n * main.bound_n)[:, None]
    contact = np.where(surface == FLOOR, 1 - np.float32(0.6) / (1 + 2 * near * near), 1)
    direct = facing * lit * (np.float32(2.2) / (1 + np.float32(0.3) * square))
    up_light = np.float32(0.75) + np.float32(0.25) * normal[1]

    # Highlights after Blinn (1977): the half vector between lamp and eye, to the 32nd power.
    lamp_u, eye_u = unit(to_lamp), unit((-way[0], -way[1], -way[2]))
    middle = unit((lamp_u[0] + eye_u[0], lamp_u[1] + eye_u[1], lamp_u[2] + eye_u[2]))
    glow = np.maximum(dot(middle, normal_v), 0)
    for _ in range(5):
        glow = glow * glow
    glow = glow * lit * look.shine_n[:, None] * (surface >= _OBJECT)

    pick = surface + SURFACES * second + (2 * SURFACES * np.arange(len(lit)))[:, None]
    channels = []
    for colour, light, ambient in zip(look.colour, look.light, look.ambient, strict=True):
        lamp = light[:, None]
        albedo = colour.ravel()[pick]
        fill = ambient[:, None] * contact * up_light
        channels.append(albedo * (lamp * direct + fill) + lamp * glow)
    return np.stack(channels)


def _outline(surface: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Pixels (n, H, W) whose right or lower neighbour is another surface."""
    edge = np.zeros(surface.shape, dtype=bool)
    edge[:, :, :-1] |= surface[:, :, :-1] != surface[:, :, 1:]
    edge[:, :-1] |= surface[:, :-1] != surface[:, 1:]
    return edge
