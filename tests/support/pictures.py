"""Folders of rendered pictures that the backbone of the package can tell apart, by class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules import Synthetic

__all__ = ["CLASSES", "draw", "write_pictures"]

#: The first of the twelve kinds of solids.
CLASSES = Synthetic(train_images=12, test_images=12).class_names[:4]


def draw(count: int, *, first: int = 0) -> dict[str, list[Image.Image]]:
    """So many pictures of each class, from number `first` of it on."""
    kinds = len(Synthetic(train_images=12, test_images=12).class_names)
    data = Synthetic(style="night", train_images=kinds * (first + count), test_images=kinds)
    found = {}
    for label, name in enumerate(CLASSES):
        places = np.arange(first, first + count) * kinds + label
        images = data.read("train", places)["image"].permute(0, 2, 3, 1).numpy()
        found[name] = [Image.fromarray(image) for image in images]
    return found


def write_pictures(
    folder: Path, count: int | Mapping[str, int] = 10, *, first: int = 0, classes: int = 4
) -> list[Path]:
    """`folder/CLASS/NUMBER.png`, so many of each class; with parts, in `folder/PART`."""
    parts = {"": count} if isinstance(count, int) else count
    written = []
    for part, each in parts.items():
        for name, images in list(draw(each, first=first).items())[:classes]:
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for number, image in enumerate(images, start=first):
                written.append(folder / part / name / f"{number:03}.png")
                image.save(written[-1])
        first += each
    return written
