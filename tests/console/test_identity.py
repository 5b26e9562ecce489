"""A strategy keeps its colour and marker, whoever stands beside it and in whatever order."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from kora.console.identity import DARK, LIGHT, MARKERS, looks

KNOWN = ["LinearProbe", "MultiLayerProbe", "LoRA", "KoRA", "KoRA-side", "BitFit", "VPT", "DoRA"]
NEW = ["LoRA + layers", "KoRA over LoRA", "d_comp=8", "LoRA (rank=8)", "Adapter+ + layers"]


def test_known_strategies_look_the_same_in_every_company() -> None:
    for name in KNOWN:
        assert looks([*NEW, name])[name] == looks([name, *KNOWN])[name] == looks([name])[name]


def test_rank_changes_nothing() -> None:
    names = [*KNOWN, *NEW]
    shuffled = random.Random(0).sample(names, len(names))
    assert looks(names) == looks(shuffled)


@pytest.mark.parametrize("count", [8, 20, 40])
def test_no_two_names_of_a_picture_look_alike(count: int) -> None:
    names = [*KNOWN, *(f"Strategy {k}" for k in range(count - len(KNOWN)))]
    assert len(set(looks(names).values())) == count


@pytest.mark.parametrize("seed", range(5))
def test_unknown_names_take_free_colours_first(seed: int) -> None:
    names = ["LoRA", "KoRA", *(f"new {seed} {k}" for k in range(6))]
    assert len({look.colour for look in looks(names).values()}) == 8


def test_there_are_more_looks_than_a_picture_needs_and_more_names_still_get_one() -> None:
    assert len(looks([f"{k}" for k in range(80)])) == 80
    assert len(LIGHT) == len(DARK)
    assert len(MARKERS) == len(set(MARKERS))


# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
VISION = {
    "all": np.eye(3),
    "protanopia": np.array([
        [0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ]),
    "deuteranopia": np.array([
        [0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]),
}  # fmt: skip


def lab(colour: str, seen: np.ndarray) -> np.ndarray:
    """CIELAB of a colour as it is seen."""
    rgb = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(seen @ linear, 0, 1)
    to_xyz = np.array([
        [0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505],
    ])  # fmt: skip
    x, y, z = to_xyz @ linear / np.array([0.9505, 1, 1.089])
    fx, fy, fz = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, y, z))
    return np.array([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)])


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_stay_apart_with_any_colour_vision(palette: tuple[str, ...], vision: str) -> None:
    seen = [lab(colour, VISION[vision]) for colour in palette]
    distances = {
        (palette[a], palette[b]): float(np.linalg.norm(seen[a] - seen[b]))
        for a, b in itertools.combinations(range(len(palette)), 2)
    }
    assert min(distances.values()) > 20, min(distances, key=distances.__getitem__)
