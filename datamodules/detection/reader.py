"""Images and their boxes as batches.

Shapes: B images a batch, N boxes of an image, H height, W width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.detection.boxes import Boxes, Picture
from datamodules.recipe import ImageRecipe, UnreadableImageError, upright_size
from datamodules.splits import IntArray

__all__ = ["BoxReader"]


@dataclass(frozen=True)
class BoxReader:
    """Reads images and brings their boxes to the pixels of the recipe; it can be pickled.

    Args:
        pictures: All pictures of a part; `read` gets their numbers.
        recipe: How an image is read; it gives all the same size.
        crowds: Whether the data has crowd regions, so that batches hold `box_crowd`.
        images: Whether batches hold `image`; without it, no image is read.
    """

    pictures: Sequence[Picture]
    recipe: ImageRecipe
    crowds: bool
    images: bool = True

    def read(self, numbers: IntArray) -> dict[str, Tensor]:
        """`image` uint8 (B, 3, H, W), and its boxes, padded to the most that one of them has.

        `boxes` float32 (B, N, 4) are x1, y1, x2, y2 in pixels of `image`, 0 beyond an image's own;
        `box_label` int64 (B, N) is -1 there. `box_crowd` is bool (B, N). `own_size` int64 (B, 2)
        holds the heights and widths of the pictures themselves, and `size` those that they have
        in `image`.

        Raises:
            UnreadableImageError: An image cannot be read, or is not of the size of its boxes.
        """
        pictures = [self.pictures[number] for number in numbers]
        most = max((len(picture.boxes.labels) for picture in pictures), default=0)
        boxes = np.zeros((len(pictures), most, 4), dtype=np.float32)
        labels = np.full((len(pictures), most), -1, dtype=np.int64)
        crowds = np.zeros((len(pictures), most), dtype=bool)
        for row, picture in enumerate(pictures):
            own = slice(0, len(picture.boxes.labels))
            boxes[row, own] = self._fitted(picture.boxes)
            labels[row, own] = picture.boxes.labels
            crowds[row, own] = picture.boxes.crowd
        sizes = np.array([picture.boxes.size for picture in pictures], dtype=np.int64)
        shown = [self.recipe.fitted_content(picture.boxes.size) for picture in pictures]
        batch = {"boxes": boxes, "box_label": labels, "own_size": sizes}
        batch["size"] = np.array(shown, dtype=np.int64)
        if self.crowds:
            batch["box_crowd"] = crowds
        if self.images:
            batch["image"] = np.stack([self._pixels(picture) for picture in pictures])
        return {name: torch.from_numpy(column) for name, column in batch.items()}

    def without_images(self) -> BoxReader | None:
        """A reader of the boxes alone."""
        return replace(self, images=False)

    def boxes(self, number: int) -> Boxes:
        """The boxes of a picture in its own pixels; of its image only the size is read.

        Raises:
            UnreadableImageError: The image cannot be opened, or is not of the size of its boxes.
        """
        picture = self.pictures[number]
        _require_size(picture, upright_size(picture.image))
        return picture.boxes

    def _pixels(self, picture: Picture) -> NDArray[np.uint8]:
        opened = self.recipe.open(picture.image)
        _require_size(picture, (opened.height, opened.width))
        return self.recipe.pixels(opened)

    def _fitted(self, boxes: Boxes) -> NDArray[np.float64]:
        """The corners (N, 4) in pixels of the recipe."""
        shown = self.recipe.fitted_content(boxes.size)
        scales = [shown[side] / boxes.size[side] for side in (1, 0, 1, 0)]
        corners_N4: NDArray[np.float64] = boxes.corners * np.array(scales)
        return corners_N4


def _require_size(picture: Picture, found: tuple[int, int]) -> None:
    """Refuse an image of another size than its boxes were drawn on."""
    expected = picture.boxes.size
    if found == expected:
        return
    remedy = (
        "The image is turned by its EXIF tag, the boxes are not: turn the boxes, or remove the tag."
        if found == expected[::-1]
        else "Give the boxes the size of the image."
    )
    raise UnreadableImageError(
        f"The image {picture.image} is {found[0]} x {found[1]} pixels, and its boxes are for "
        f"{expected[0]} x {expected[1]}. {remedy}"
    )
