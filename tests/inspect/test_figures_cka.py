"""Claims about the heat maps of CKA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kora.inspect.figures_cka import cka_map


def draw(path: Path, cka: np.ndarray, *, title: str = "") -> np.ndarray:
    rows, columns = ([f"block {i}" for i in range(n)] for n in cka.shape)
    made = cka_map(cka, rows, columns, path, row_label="a", column_label="b", title=title)
    return np.asarray(Image.open(made).convert("RGB")).astype(int)


def cells(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Where the picture has a colour."""
    return np.argwhere((np.abs(pixels - colour) < 12).all(axis=-1))


def test_the_first_layer_is_at_the_bottom_left_and_colours_run_from_0_to_1(tmp_path: Path) -> None:
    cka = np.zeros((40, 40))  # so many that nothing is written into them
    cka[0, 0] = 1
    pixels = draw(tmp_path / "map.png", cka)
    yellow, violet = cells(pixels, (253, 231, 37)), cells(pixels, (68, 1, 84))
    beside = yellow[yellow[:, 1] < violet[:, 1].mean()]  # not those of the bar
    assert beside[:, 0].mean() > violet[:, 0].mean()
    assert len(beside) > 20
    assert beside[:, 1].max() - beside[:, 1].min() < 40


@pytest.mark.parametrize(("layers", "written"), [(4, True), (40, False)])
def test_values_are_written_while_they_can_be_read(
    layers: int, written: bool, tmp_path: Path
) -> None:
    pixels = draw(tmp_path / "map.png", np.ones((layers, layers)))
    yellow = cells(pixels, (253, 231, 37))
    (top, left), bottom = yellow.min(axis=0), yellow[:, 0].max()
    side = bottom - top  # cells are square, and the bar is to the right of them
    inside = pixels[top + 5 : bottom - 5, left + 5 : left + side - 5]
    assert (len(cells(inside, (0, 0, 0))) > 100) == written


def test_where_there_is_no_cka_it_is_grey(tmp_path: Path) -> None:
    pixels = draw(tmp_path / "map.png", np.full((4, 4), np.nan))
    assert len(cells(pixels, (187, 187, 187))) > 10_000


def test_it_grows_with_its_layers_and_need_not_be_square(tmp_path: Path) -> None:
    small, wide = (draw(tmp_path / f"{n}.png", np.full((8, n), 0.5)) for n in (8, 26))
    assert wide.shape[1] > 1.8 * small.shape[1]
    assert abs(wide.shape[0] - small.shape[0]) < 10


def test_names_with_dollars_are_no_mathematics(tmp_path: Path) -> None:
    draw(tmp_path / "map.png", np.ones((2, 2)), title="$HOME/run $x")


def test_a_matrix_of_other_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 3\); expected \(2, 2\)"):
        cka_map(
            np.ones((2, 3)), ["a", "b"], ["a", "b"], tmp_path / "m.png",
            row_label="a", column_label="b",
        )  # fmt: skip
