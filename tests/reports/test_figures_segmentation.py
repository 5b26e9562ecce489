"""Claims about pictures of masks, and about the colours of their classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kora.reports.figures_segmentation import _mistakes, legend, mask_grid
from kora.reports.palette import IGNORED_COLOUR, coloured, palette_image, palette_of


@pytest.mark.parametrize("count", [2, 8, 21, 150, 254])
def test_every_class_has_a_colour_of_its_own(count: int) -> None:
    palette = palette_of(count)
    assert len(set(palette)) == count == len(palette)
    assert IGNORED_COLOUR not in palette
    assert palette == palette_of(count + 1)[:count] or count < 8


def test_given_colours_are_used_if_there_is_one_for_each_class() -> None:
    given = [(1, 2, 3), (4, 5, 6)]
    assert palette_of(2, given) == given
    assert palette_of(3, given) != given


def test_a_palette_image_holds_the_classes_and_shows_their_colours(tmp_path: Path) -> None:
    mask = np.array([[0, 1, 2], [255, 2, 1]], dtype=np.uint8)
    palette = palette_of(3)
    palette_image(mask, palette).save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), mask)
        assert np.array_equal(np.asarray(image.convert("RGB")), coloured(mask, palette))


def test_only_counted_pixels_that_differ_are_mistakes() -> None:
    picture = np.zeros((3, 2, 4), np.uint8)
    truth = np.array([[0, 0, 1, 255], [1, 1, 1, 1]], dtype=np.uint8)
    guess = np.array([[0, 1, 1, 0], [1, 1, 1, 0]], dtype=np.uint8)
    palette = palette_of(2)
    shown = _mistakes(picture, truth, guess, palette)
    wrong = (shown == palette[1]).all(-1) | (shown == palette[0]).all(-1)
    assert np.argwhere(wrong).tolist() == [[0, 1], [1, 3]]
    assert tuple(shown[0, 1]) == palette[1]


def test_a_grid_of_images_of_several_sizes_with_strange_names_is_drawn(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    sizes = [(20, 30), (40, 24)]
    images = [generator.integers(0, 256, (3, 16, 16), dtype=np.uint8) for _ in sizes]
    masks = [generator.integers(0, 3, size, dtype=np.uint8) for size in sizes]
    names = ["$x$", "a very long name of a class that would not fit", "sky"]
    path = mask_grid(
        images, masks, masks, tmp_path / "grid.png", names=names, palette=palette_of(3)
    )
    with Image.open(path) as picture:
        assert min(picture.size) > 300
    with Image.open(legend(names, palette_of(3), tmp_path / "legend.png")) as picture:
        assert picture.width > 500
