"""Folders of images and masks, and small data with masks, each in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules import Synthetic

__all__ = ["areas", "mask_scenes", "masked", "write_pair", "write_pairs"]


def write_pair(
    folder: Path, name: str, mask: NDArray[Any], *, size: tuple[int, int] | None = None
) -> tuple[Path, Path]:
    """A PNG image (its colours follow the mask) and its mask, in `images` and `masks`."""
    image, truth = folder / "images" / f"{name}.png", folder / "masks" / f"{name}.png"
    for path in (image, truth):
        path.parent.mkdir(parents=True, exist_ok=True)
    height, width = size or mask.shape[:2]
    Image.fromarray(masked(mask)).resize((width, height)).save(image)
    Image.fromarray(mask).save(truth)
    return image, truth


def masked(mask: NDArray[Any]) -> NDArray[np.uint8]:
    """An image (H, W, 3) whose colours say which class each pixel has."""
    classes = (mask if mask.ndim == 2 else mask[..., 0]).astype(int)
    return np.stack([classes * 60 % 256, classes * 110 % 256, 255 - classes], -1).astype(np.uint8)


def write_pairs(
    folder: Path,
    names: Sequence[str],
    *,
    size: tuple[int, int] = (24, 32),
    classes: int = 3,
) -> None:
    """Pairs of these names: masks of `classes` vertical stripes whose borders differ."""
    for number, name in enumerate(names):
        columns = (np.arange(size[1]) + number) * classes // size[1] % classes
        write_pair(folder, name, np.broadcast_to(columns.astype(np.uint8), size).copy())


def mask_scenes(**options: Any) -> Synthetic:
    """48 training, 12 validation and 24 test scenes of 32 pixels with masks of four classes."""
    return Synthetic(
        **{
            "image_size": 32,
            "train_images": 60,
            "test_images": 24,
            "val_images": 12,
            "batch_size": 12,
            "maps": ["mask"],
            "seed": 0,
            **options,
        }
    )


def areas(
    generator: np.random.Generator, right: float, *, images: int = 60, seeds: int = 3
) -> np.ndarray[Any, Any]:
    """(S, I, 3, K) of three classes in each image, `right` of whose pixels are found."""
    true = generator.integers(50, 150, size=(images, 3))
    found = generator.binomial(true, right, size=(seeds, images, 3))
    wrong = (true - found)[..., [1, 2, 0]]  # what is missed is taken for the next class
    return np.stack([found, found + wrong, np.broadcast_to(true, found.shape)], axis=2)
