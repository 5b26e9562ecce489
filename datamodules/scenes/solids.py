"""Rays against the solids of a synthetic scene, without a loop over images or pixels.

Every solid is a primitive of the cube [-1, 1]^3, stretched by half sizes, rotated and moved. A ray
is mapped into that cube, where the distance along it stays the same. Pixels need only basic
IEEE operations and square roots, never a library's sine or exponential, so a scene has the same
bytes on every machine and in every batch.

Shapes: n images, P rays an image, m rays that may meet the solid
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "KINDS",
    "MINOR",
    "Float",
    "Hits",
    "Solids",
    "Vec",
    "dot",
    "intersect",
    "support",
    "unit",
]

Float = NDArray[Any]
Vec = tuple[Float, Float, Float]  # x right, y up, z into the room

KINDS = ("sphere", "box", "cylinder", "cone", "torus", "pyramid")
#: Radius of the torus' tube; its ring has radius 1 - MINOR, its axis is y.
MINOR = 0.26
# Plane (a, b, c, d) holds the half space a x + b y + c z <= d.
_BOX = ((1, 0, 0, 1), (-1, 0, 0, 1), (0, 1, 0, 1), (0, -1, 0, 1), (0, 0, 1, 1), (0, 0, -1, 1))
_PYRAMID = ((2, 1, 0, 1), (-2, 1, 0, 1), (0, 1, 2, 1), (0, 1, -2, 1), (0, -1, 0, 1))
_TORUS_STEPS, _TORUS_HIT = 40, 6e-3
_NEAR = 1e-3


@dataclass(frozen=True)
class Solids:
    """One solid an image.

    Args:
        kind_n: index into `KINDS`.
        centre: of the primitive's cube, in metres; three arrays (n,).
        axes: directions of the primitive's x, y and z axes in the room; each three arrays (n,).
        half: half sizes along these axes in metres; three arrays (n,).
        bound_n: radius in metres of a sphere around it all; 0 if the image has no such solid.
    """

    kind_n: NDArray[np.int64]
    centre: Vec
    axes: tuple[Vec, Vec, Vec]
    half: Vec
    bound_n: Float


@dataclass(frozen=True)
class Hits:
    """Rays that meet a solid, as positions `flat_m` in the flattened (n, P) grid.

    `t_m` is the distance in units of the ray's direction, `local` the point within the cube.
    """

    flat_m: NDArray[np.int64]
    t_m: Float
    local: Vec
    normal: Vec


def dot(a: Vec, b: Vec) -> Float:
    """Inner product, in a fixed order of operations."""
    product: Float = a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
    return product


def unit(a: Vec) -> Vec:
    """The vector divided by its length."""
    length = np.sqrt(dot(a, a))
    return a[0] / length, a[1] / length, a[2] / length


def intersect(solids: Solids, origin: Vec, direction: Vec, *, normals: bool = True) -> Hits:
    """First hits of rays origin + t direction with t > 0; arrays (n, P), origins also (n, 1)."""
    offset = tuple(o - c[:, None] for o, c in zip(origin, solids.centre, strict=True))
    along = dot(offset, direction)  # type: ignore[arg-type]
    closest = along * along - dot(direction, direction) * (
        dot(offset, offset) - (solids.bound_n * solids.bound_n)[:, None]  # type: ignore[arg-type]
    )
    flat = np.flatnonzero((closest > 0) & (along < 0))
    per_image = direction[0].shape[1]
    row = flat // per_image
    start, step = [], []
    way = [d.ravel()[flat] for d in direction]
    if offset[0].shape[1] == 1:
        base = [o[:, 0][row] for o in offset]
    else:
        base = [o.ravel()[flat] for o in offset]
    for axis, half in zip(solids.axes, solids.half, strict=True):
        scaled = [(a / half)[row] for a in axis]
        start.append(scaled[0] * base[0] + scaled[1] * base[1] + scaled[2] * base[2])
        step.append(scaled[0] * way[0] + scaled[1] * way[1] + scaled[2] * way[2])

    kind = solids.kind_n[row]
    t = np.full(len(flat), np.inf, dtype=np.float32)
    for index, distance in enumerate(_DISTANCE):
        at = np.flatnonzero(kind == index)
        if len(at):
            t[at] = distance(_pick(start, at), _pick(step, at))
    hit = np.flatnonzero((t > _NEAR) & (t < np.inf))
    flat, row, kind, t = flat[hit], row[hit], kind[hit], t[hit]
    local: Vec = tuple(  # type: ignore[assignment]
        o + t * d for o, d in zip(_pick(start, hit), _pick(step, hit), strict=True)
    )
    normal = _normals(solids, kind, row, local) if normals else local
    return Hits(flat, t, local, normal)


def support(solids: Solids, down: Vec) -> Float:
    """How far each solid reaches from its centre in direction `down`, in metres (n,)."""
    x, y, z = (h * dot(axis, down) for axis, h in zip(solids.axes, solids.half, strict=True))
    ring = np.sqrt(x * x + z * z)
    square = abs(x) + abs(z)
    length = np.sqrt(x * x + y * y + z * z)
    reach = [
        length,
        square + abs(y),
        ring + abs(y),
        np.maximum(y, ring - y),
        (1 - MINOR) * ring + MINOR * length,
        np.maximum(y, square - y),
    ]
    return np.choose(solids.kind_n, reach)


def _normals(solids: Solids, kind: NDArray[np.int64], row: NDArray[np.int64], local: Vec) -> Vec:
    """Outward unit normals in the room at points `local` of the primitives' surfaces."""
    inner = [np.empty_like(local[0]) for _ in range(3)]
    for index, gradient in enumerate(_GRADIENT):
        at = np.flatnonzero(kind == index)
        if len(at):
            for component, value in zip(inner, gradient(_pick(local, at)), strict=True):
                component[at] = value
    world = []
    for i in range(3):
        terms = [
            (solids.axes[j][i] / solids.half[j])[row] * inner[j]  # normals stretch inversely
            for j in range(3)
        ]
        world.append(terms[0] + terms[1] + terms[2])
    return unit((world[0], world[1], world[2]))


def _pick(vectors: Vec | list[Float], at: NDArray[np.int64]) -> Vec:
    return vectors[0][at], vectors[1][at], vectors[2][at]


# Distances along a ray within the cube; inf for a miss ------------------------------------------


def _quadratic(a: Float, b: Float, c: Float) -> tuple[Float, Float]:
    """Roots of a t^2 + 2 b t + c, smaller a-scaled one first; inf, -inf where there are none."""
    under = b * b - a * c
    root = np.sqrt(np.maximum(under, 0))
    return (
        np.where(under > 0, (-b - root) / a, np.float32(np.inf)),
        np.where(under > 0, (-b + root) / a, np.float32(-np.inf)),
    )


def _sphere(o: Vec, d: Vec) -> Float:
    return _quadratic(dot(d, d), dot(o, d), dot(o, o) - 1)[0]


def _polyhedron(o: Vec, d: Vec, planes: tuple[tuple[int, int, int, int], ...]) -> Float:
    enter = np.full_like(o[0], -np.inf)
    leave = np.full_like(o[0], np.inf)
    for a, b, c, limit in planes:
        speed = a * d[0] + b * d[1] + c * d[2]
        room = limit - (a * o[0] + b * o[1] + c * o[2])
        t = room / np.where(speed == 0, np.float32(1e-20), speed)
        enter = np.where(speed < 0, np.maximum(enter, t), enter)
        leave = np.where(speed < 0, leave, np.minimum(leave, t))
    return np.where(enter < leave, enter, np.float32(np.inf))


def _cylinder(o: Vec, d: Vec) -> Float:
    across = np.maximum(d[0] * d[0] + d[2] * d[2], np.float32(1e-12))
    enter, leave = _quadratic(across, o[0] * d[0] + o[2] * d[2], o[0] * o[0] + o[2] * o[2] - 1)
    speed = np.where(d[1] == 0, np.float32(1e-20), d[1])
    first, second = (-1 - o[1]) / speed, (1 - o[1]) / speed
    enter = np.maximum(enter, np.minimum(first, second))
    leave = np.minimum(leave, np.maximum(first, second))
    return np.where(enter < leave, enter, np.float32(np.inf))


def _cone(o: Vec, d: Vec) -> Float:
    """Base of radius 1 at y = -1, tip at y = 1: x^2 + z^2 = (1 - y)^2 / 4."""
    a = d[0] * d[0] + d[2] * d[2] - d[1] * d[1] / 4
    b = o[0] * d[0] + o[2] * d[2] + (1 - o[1]) * d[1] / 4
    c = o[0] * o[0] + o[2] * o[2] - (1 - o[1]) * (1 - o[1]) / 4
    best = np.full_like(o[0], np.inf)
    for t in _quadratic(np.where(a == 0, np.float32(1e-12), a), b, c):
        inside = abs(np.where(np.isfinite(t), o[1] + t * d[1], np.float32(2))) <= 1
        best = np.where(inside & (t > _NEAR) & (t < best), t, best)
    t = (-1 - o[1]) / np.where(d[1] == 0, np.float32(1e-20), d[1])
    x, z = o[0] + t * d[0], o[2] + t * d[2]
    return np.where((x * x + z * z <= 1) & (t > _NEAR) & (t < best), t, best)


def _torus(o: Vec, d: Vec) -> Float:
    """Sphere tracing (Hart 1996): step on by the distance to the surface, from the unit sphere."""
    length = np.sqrt(dot(d, d))
    u = (d[0] / length, d[1] / length, d[2] / length)
    enter, leave = _quadratic(np.ones_like(length), dot(o, u), dot(o, o) - 1)
    s = np.where(enter < np.inf, np.maximum(enter, 0), np.float32(0))
    gap = np.zeros_like(s)
    for _ in range(_TORUS_STEPS):
        x, y, z = o[0] + s * u[0], o[1] + s * u[1], o[2] + s * u[2]
        ring = np.sqrt(x * x + z * z) - np.float32(1 - MINOR)
        gap = np.sqrt(ring * ring + y * y) - np.float32(MINOR)
        s = s + gap
    return np.where((gap < _TORUS_HIT) & (s < leave), s / length, np.float32(np.inf))


_DISTANCE: tuple[Callable[[Vec, Vec], Float], ...] = (
    _sphere,
    lambda o, d: _polyhedron(o, d, _BOX),
    _cylinder,
    _cone,
    _torus,
    lambda o, d: _polyhedron(o, d, _PYRAMID),
)


# Outward directions at a point of the surface ---------------------------------------------------


def _steepest_plane(p: Vec, planes: tuple[tuple[int, int, int, int], ...]) -> Vec:
    """Normal of the face that the point lies on."""
    best = np.full_like(p[0], -np.inf)
    out = [np.zeros_like(p[0]) for _ in range(3)]
    for *normal, limit in planes:
        length = np.float32(np.sqrt(float(sum(k * k for k in normal))))
        excess = (normal[0] * p[0] + normal[1] * p[1] + normal[2] * p[2] - limit) / length
        better = excess > best
        best = np.where(better, excess, best)
        out = [np.where(better, np.float32(k), o) for k, o in zip(normal, out, strict=True)]
    return out[0], out[1], out[2]


def _cylinder_normal(p: Vec) -> Vec:
    cap = abs(p[1]) > np.sqrt(p[0] * p[0] + p[2] * p[2])
    zero = np.float32(0)
    return np.where(cap, zero, p[0]), np.where(cap, p[1], zero), np.where(cap, zero, p[2])


def _cone_normal(p: Vec) -> Vec:
    ring = np.sqrt(p[0] * p[0] + p[2] * p[2])
    base = (-1 - p[1]) > (2 * ring + p[1] - 1) / np.float32(np.sqrt(5.0))
    zero, down = np.float32(0), np.float32(-1)
    return np.where(base, zero, p[0]), np.where(base, down, ring / 2), np.where(base, zero, p[2])


def _torus_normal(p: Vec) -> Vec:
    ring = np.maximum(np.sqrt(p[0] * p[0] + p[2] * p[2]), np.float32(1e-6))
    pull = 1 - np.float32(1 - MINOR) / ring
    return p[0] * pull, p[1], p[2] * pull


_GRADIENT: tuple[Callable[[Vec], Vec], ...] = (
    lambda p: p,
    lambda p: _steepest_plane(p, _BOX),
    _cylinder_normal,
    _cone_normal,
    _torus_normal,
    lambda p: _steepest_plane(p, _PYRAMID),
)
