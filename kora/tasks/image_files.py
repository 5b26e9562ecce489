"""A folder of images, read by the workers of a data loader; unreadable files become errors.

Shapes: H and W pixels of an image, h and w those at which the backbone runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.loading import image_suffixes, visible_files
from datamodules.recipe import ImageRecipe, UnreadableImageError
from kora.backbone.images import resized

__all__ = ["Batch", "ImageFiles", "collate", "image_files"]


class Batch(NamedTuple):
    """Images of one batch that could be read, and the errors of those that could not."""

    places: list[int]  # of the images, in the list of files
    images: Tensor  # (B, 3, h, w), floating point in [0, 1]
    sizes: list[tuple[int, int]]  # (H, W) of each, less what was cut off
    errors: dict[int, str]  # by place


class ImageFiles(Dataset[dict[str, Any]]):
    """Files as tensors (3, h, w) in [0, 1], prepared as the run prepared its own.

    `size` is that of the backbone; None leaves images at the size that the recipe gives them.
    """

    def __init__(
        self,
        files: Sequence[Path],
        recipe: ImageRecipe,
        *,
        size: tuple[int, int] | None,
        interpolation: str,
    ) -> None:
        self.files = list(files)
        self.recipe = recipe
        self.size = size
        self.interpolation = interpolation

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> dict[str, Any]:
        try:
            picture = self.recipe.open(self.files[place])
        except UnreadableImageError as error:
            return {"place": place, "error": str(error)}
        pixels = torch.from_numpy(self.recipe.pixels(picture))
        given = (pixels.shape[-2], pixels.shape[-1])
        image = resized(pixels[None], self.size or given, self.interpolation)[0]
        size = self.recipe.shown((picture.height, picture.width))
        return {"place": place, "image": image, "size": size}


def collate(items: Sequence[dict[str, Any]]) -> Batch:
    """One batch of the images that could be read, with the errors of the others."""
    read = [item for item in items if "image" in item]
    images = torch.stack([item["image"] for item in read]) if read else torch.empty(0)
    return Batch(
        [item["place"] for item in read],
        images,
        [item["size"] for item in read],
        {item["place"]: item["error"] for item in items if "error" in item},
    )


def image_files(folder: Path) -> tuple[list[Path], int]:
    """Images below a folder, sorted, and the number of other files; hidden ones do not count.

    A path to a file is taken as one image, whatever its name.

    Raises:
        FileNotFoundError: If the path does not exist.
        ValueError: If no image is in it.
    """
    if folder.exists() and not folder.is_dir():
        return [folder], 0
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: there is no such folder.")
    suffixes = image_suffixes()
    files = list(visible_files(folder))
    found = [path for path in files if path.suffix.lower() in suffixes]
    others = len(files) - len(found)
    if not found:
        known = ", ".join(sorted(s for s in suffixes if s in (".jpg", ".png", ".webp", ".tif")))
        raise ValueError(
            f"{folder} holds no image, by the names of its {others} files. Expected "
            f"{known} or another format that Pillow reads."
        )
    return found, others
