"""Claims about resizing inside a graph: Pillow's pixels to the bit, torch's to 1e-5."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datamodules.recipe import Fit, ImageRecipe
from kora.backbone.images import resized
from kora.export.graph_resize import content_size, fit_pixels, resize_pixels
from tests.support.picture_factory import scene

SIZES = [(1, 90), (90, 1), (2, 2), (48, 40), (31, 200), (333, 57), (40, 48), (100, 101)]


def noise(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fit", ["crop", "stretch", "contain"])
def test_a_fit_is_that_of_pillow_to_the_bit(fit: Fit, size: tuple[int, int]) -> None:
    for pixels in (noise(size), np.asarray(scene(1, size))):
        for target in ((48, 40), (70, 70)):
            recipe = ImageRecipe(fit, target)
            images = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
            assert np.array_equal(fit_pixels(images, recipe)[0].numpy(), recipe(pixels))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_resize_is_that_of_the_backbone(interpolation: str, size: tuple[int, int]) -> None:
    images = torch.from_numpy(noise(size)).permute(2, 0, 1)[None]
    found = resize_pixels(images.double(), (56, 42), interpolation)
    torch.testing.assert_close(found, resized(images, (56, 42), interpolation), rtol=0, atol=1e-5)


def test_a_fit_that_a_graph_does_not_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="does not hold the fit 'cover' of images, only crop, str"):
        fit_pixels(torch.zeros(1, 3, 8, 9, dtype=torch.uint8), ImageRecipe("cover", (4, 4)))


def test_the_size_of_the_content_is_that_of_the_recipe() -> None:
    for fit in ("contain", "stretch", None):
        recipe = ImageRecipe(fit, None if fit is None else (56, 42))
        for size in [*SIZES, (7, 5), (56, 42), (112, 1000), (3, 1000)]:
            found = content_size(torch.zeros(1, 3, *size), recipe)
            assert tuple(map(float, found)) == recipe.fitted_content(size)
