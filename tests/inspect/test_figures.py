"""Claims about heat maps by block and site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import LogNorm
from matplotlib.text import Text
from PIL import Image

from kora.analysis.quantity import Place, Quantity, Spectrum
from kora.inspect import figures
from kora.inspect.figures import _axes_of, _norm, _short, cka_map, place_maps, spectrum_maps

SITES = ("qkv", "proj", "fc1", "fc2")


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def quantity(values: dict[Place, float | None], name: str = "norm", family: str = "") -> Quantity:
    return Quantity(name, name, "A norm.", values, family)


def grid(
    blocks: int, sites: tuple[str, ...] = SITES, value: float = 1.0
) -> dict[Place, float | None]:
    return {(str(i), site): value for i in range(blocks) for site in sites}


def test_colours_are_logarithmic_from_two_decades_on() -> None:
    assert isinstance(_norm(np.array([1e-9, 1.0])), LogNorm)
    assert isinstance(_norm(np.array([0.01, 1.0, 0.0])), LogNorm)
    few = _norm(np.array([0.02, 1.0, np.nan, np.inf]))
    assert not isinstance(few, LogNorm)
    assert (few.vmin, few.vmax) == (0, 1)
    assert not isinstance(_norm(np.zeros(3)), LogNorm)


def test_small_values_differ_in_colour_though_they_are_far_from_one(tmp_path: Path) -> None:
    values: dict[Place, float | None] = {("0", "a"): 1e-12, ("0", "b"): 1e-8, ("0", "c"): 1.0}
    pixels = picture(place_maps([quantity(values)], tmp_path / "map.png"))
    colours = {tuple(pixel) for pixel in pixels.reshape(-1, 3)}
    for viridis in ((68, 1, 84), (49, 104, 142), (253, 231, 37)):  # at 0, a third, 1
        assert any(np.abs(np.subtract(viridis, one)).max() <= 3 for one in colours), viridis


def test_a_zero_and_a_missing_value_have_no_colour_of_a_number(tmp_path: Path) -> None:
    def coloured(value: float | None) -> int:
        path = place_maps([quantity({("0", "a"): value})], tmp_path / "map.png")
        left = picture(path)[:, :150]  # without the colour bar
        return int((np.ptp(left, axis=-1) > 40).sum())

    assert coloured(1.0) > 1000
    assert coloured(0.0) == coloured(None) == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (float("inf"), "none"), (0.5203, "0.52"), (1.23e-9, "1.2e-9"), (4321.0, "4.3e3"),
     (999.6, "1e+03")],
)  # fmt: skip
def test_numbers_in_cells_are_short(value: float, text: str) -> None:
    assert _short(value) == text


def test_maps_of_one_family_share_their_colours(tmp_path: Path) -> None:
    """The same value looks the same in both, though the other one is the larger."""
    small, large = grid(2, value=1.0), grid(2, value=2.0)
    both = [quantity(small, "one", "same"), quantity(large, "two", "same")]
    pixels = picture(place_maps(both, tmp_path / "map.png"))
    yellow = np.abs(pixels - np.array([253, 231, 37])).max(axis=-1) <= 3
    middle = pixels.shape[1] // 2
    assert yellow[:, middle:].sum() > 10 * yellow[:, :middle].sum()


@pytest.mark.parametrize("sites", [SITES, ("q", "k", "v", "proj", "fc1", "fc2")])
def test_it_grows_with_blocks_and_sites(tmp_path: Path, sites: tuple[str, ...]) -> None:
    few = picture(place_maps([quantity(grid(4, sites))], tmp_path / "few.png"))
    many = picture(place_maps([quantity(grid(12, sites))], tmp_path / "many.png"))
    assert many.shape[0] > few.shape[0] + 250  # room for a number in each row
    more = picture(place_maps([quantity(grid(4, (*sites, "gate")))], tmp_path / "more.png"))
    assert more.shape[1] > few.shape[1] + 60


def test_rows_are_blocks_in_order_with_what_is_outside_last() -> None:
    places = [("10", "qkv"), ("–", "norm"), ("2", "qkv"), ("2", "fc1")]
    assert _axes_of(places) == (["2", "10", "–"], ["qkv", "norm", "fc1"])


def test_a_spectrum_has_a_row_a_place_and_series_may_differ_in_length(tmp_path: Path) -> None:
    short = Spectrum("s", "s", "Of it.", {("0", "a"): [2.0, 1.0], ("0", "b"): [1.0]})
    long = Spectrum("s", "s", "Of it.", {(str(i), "a"): [2.0, 1.0, 0.0] for i in range(48)})
    one = picture(spectrum_maps([short], tmp_path / "one.png"))
    two = picture(spectrum_maps([short, long], tmp_path / "two.png"))
    assert two.shape[0] > one.shape[0]
    assert two.shape[1] > one.shape[1]


def test_hundreds_of_singular_values_make_no_picture_that_is_wider_than_a_screen(
    tmp_path: Path,
) -> None:
    many = Spectrum("s", "s", "Of it.", {("0", "a"): [1.0 / (1 + n) for n in range(384)]})
    few = Spectrum("t", "t", "Of it.", {("0", "a"): [2.0, 1.0]})
    both = picture(spectrum_maps([many, few], tmp_path / "both.png"))
    assert both.shape[1] <= 2500
    alone = picture(spectrum_maps([few], tmp_path / "alone.png"))
    assert alone.shape[1] < both.shape[1] / 2


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


def test_names_with_dollars_are_no_mathematics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    save = figures.save
    monkeypatch.setattr(figures, "save", lambda f, out: drawn.append(f) or save(f, out))
    draw(tmp_path / "map.png", np.ones((2, 2)), title="$HOME/run $x")
    assert r"\$HOME/run \$x" in [text.get_text() for text in drawn[0].findobj(Text)]
