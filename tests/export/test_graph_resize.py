"""Claims about resizing inside a graph: Pillow's pixels to the bit, torch's to 1e-5."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datamodules.recipe import ImageRecipe
from kora.backbone.images import resized
from kora.export.graph_resize import fit_pixels, resize_pixels
from tests.support.picture_factory import scene

SIZES = [(1, 90), (90, 1), (2, 2), (48, 40), (31, 200), (333, 57), (40, 48), (100, 101)]


def noise(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_a_fit_is_that_of_pillow_to_the_bit(fit: str, size: tuple[int, int]) -> None:
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
