"""Boxes around the objects of instance masks: PNG files in which each value above 0 is an object.

Shapes: H height, W width
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from datamodules.detection.boxes import Annotations, Picture, own_boxes, require_images
from datamodules.detection.layouts import Source
from datamodules.loading import by_stem, folders_in, image_suffixes, visible_files
from datamodules.recipe import upright_size

__all__ = ["read_instances"]


def read_instances(source: Source, names: list[str] | None) -> Annotations:
    """The boxes of masks with the names of their images; folders among the masks are classes.

    Without such folders there is one class, the one of `names`, or `object`. An image without a
    mask has no object.

    Raises:
        FileNotFoundError: A mask has no image.
        ValueError: A mask cannot be used, two of one image differ in size, or two images have one
            name.
    """
    folders = folders_in(source.boxes)
    classes = folders or (names if names and len(names) == 1 else ["object"])
    images = by_stem(source.images, image_suffixes())
    masks: dict[str, list[tuple[int, Path]]] = {}
    for label, folder in enumerate(folders or [""]):
        for path in visible_files(source.boxes / folder):
            key = path.relative_to(source.boxes / folder).with_suffix("").as_posix()
            masks.setdefault(key, []).append((label, path))
    paths = [images.get(key, source.images / f"{key}.png") for key in masks]
    require_images(paths, source.boxes, source.images)
    found = tqdm(
        zip(paths, masks.values(), strict=True), total=len(paths), desc="Reading masks", delay=2
    )
    pictures = [_picture(path, of_image, source) for path, of_image in found]
    pictures += [_without_objects(images[key], source) for key in sorted(images.keys() - masks)]
    return Annotations(source.boxes, list(classes), True, pictures)


def _picture(path: Path, masks: list[tuple[int, Path]], source: Source) -> Picture:
    arrays = [(label, file, _values(file)) for label, file in masks]
    size = arrays[0][2].shape
    for _, file, array in arrays:
        if array.shape != size:
            raise ValueError(
                f"The mask {file} is {array.shape[0]} x {array.shape[1]} pixels, and {masks[0][1]} "
                f"{size[0]} x {size[1]}. Give all masks of an image its size."
            )
    rows = [(label, box) for label, _, array in arrays for box in _boxes(array)]
    boxes = own_boxes(
        [box for _, box in rows],
        labels=[label for label, _ in rows],
        size=(size[0], size[1]),
        name=lambda place: f"{masks[0][1]}, object {place + 1}",
    )
    return Picture(path.relative_to(source.images).as_posix(), path, boxes)


def _without_objects(path: Path, source: Source) -> Picture:
    boxes = own_boxes([], labels=[], size=upright_size(path), name=str)
    return Picture(path.relative_to(source.images).as_posix(), path, boxes)


def _values(file: Path) -> NDArray[np.int64]:
    """The numbers (H, W) of a mask."""
    try:
        with Image.open(file, formats=["PNG"]) as opened:
            if opened.mode not in ("1", "L", "P", "I", "I;16"):
                raise ValueError(f"mode {opened.mode}")
            return np.asarray(opened).astype(np.int64)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"Cannot read the mask {file} ({error}). Expected a grey or palette PNG, 8 or 16 bits, "
            "each value above 0 an object."
        ) from error


def _boxes(values_HW: NDArray[np.int64]) -> Iterator[tuple[int, int, int, int]]:
    """The corners around each value above 0."""
    from scipy.ndimage import find_objects  # takes a quarter of a second

    for place in find_objects(values_HW):
        if place is not None:
            rows, columns = place
            yield columns.start, rows.start, columns.stop, rows.stop
