"""Claims about the heat map of a fusion's attention."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from kora.reports.figures_fusion import attention_map


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def draw(path: Path, shares: list[list[float]], *, written: bool = True) -> Path:
    """The map of these rows; many rows leave out the numbers in the cells."""
    rows = shares if written else shares * 40
    return attention_map(
        np.asarray(rows), [f"b{i:02d}_mlp" for i in range(len(rows))], ["a/X", "b/X"], path
    )


def test_more_than_an_equal_share_is_blue_and_less_is_red(tmp_path: Path) -> None:
    pixels = picture(draw(tmp_path / "map.png", [[0.9, 0.1]], written=False))
    blue = (pixels[..., 2] - pixels[..., 0] > 60).any(axis=0).nonzero()[0]
    red = (pixels[..., 0] - pixels[..., 2] > 60).any(axis=0).nonzero()[0]
    assert blue.min() < red.min()


def test_equal_shares_are_white(tmp_path: Path) -> None:
    pixels = picture(draw(tmp_path / "map.png", [[0.5, 0.5]], written=False))
    left = pixels[:, : pixels.shape[1] // 2]
    assert (np.ptp(left, axis=-1) < 30).all()


def test_it_grows_with_its_places_and_names_of_any_length_fit(tmp_path: Path) -> None:
    few = picture(draw(tmp_path / "few.png", [[0.6, 0.4]] * 3))
    many = picture(draw(tmp_path / "many.png", [[0.6, 0.4]] * 12))
    assert many.shape[0] > few.shape[0]
    long = attention_map(np.ones((2, 1)), ["b00_mlp", "b01_mlp"], ["x" * 300], tmp_path / "l.png")
    assert picture(long).shape[1] < 1000
