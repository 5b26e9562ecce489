"""Images and masks as batches.

Shapes: B images a batch, H height, W width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.recipe import ImageRecipe, upright_size
from datamodules.segmentation.masks import IGNORED, MaskError, MaskRecipe, resized_mask
from datamodules.segmentation.pairs import Pair
from datamodules.splits import IntArray

__all__ = ["PairReader"]


@dataclass(frozen=True)
class PairReader:
    """Reads pairs of an image and a mask; it can be pickled.

    Args:
        pairs: All pairs of a part; `read` gets their numbers.
        recipe: How an image is read.
        masks: How a mask is read.
        trains: Give each mask the size of its image as the recipe makes it, for training. Without
            it, a mask keeps its own size, at which it is evaluated.
        images: Whether batches hold `image`; without it, no image is decoded.
    """

    pairs: Sequence[Pair]
    recipe: ImageRecipe
    masks: MaskRecipe
    trains: bool
    images: bool = True

    def read(self, numbers: IntArray) -> dict[str, Tensor]:
        """`image` uint8 (B, 3, H, W) and `mask` uint8 (B, H, W).

        Images of several sizes are padded with 0 at the right and below, masks with `IGNORED`.
        `size` (B, 2) and `mask_size` (B, 2) are their true heights and widths, given unless each
        image has the size of the recipe and each mask that of its image.

        Raises:
            UnreadableImageError: An image cannot be read.
            MaskError: A mask cannot be used, or has another size than its image.
        """
        if not self.images:
            masks = [self._fitted(self.mask(int(number))) for number in numbers]
            batch = {"mask": _stacked(masks, IGNORED)}
        else:
            pairs = [self._one(self.pairs[number]) for number in numbers]
            images, masks = [image for image, _ in pairs], [mask for _, mask in pairs]
            batch = {"image": _stacked(images, 0), "mask": _stacked(masks, IGNORED)}
            if self.recipe.fit == "cover":
                batch["size"] = torch.tensor([image.shape[-2:] for image in images])
        if not self.trains:
            batch["mask_size"] = torch.tensor([mask.shape for mask in masks])
        return batch

    def without_images(self) -> PairReader | None:
        """A reader of the masks alone; None if batches must say how large their images are."""
        return None if self.recipe.fit == "cover" else replace(self, images=False)

    def mask(self, number: int) -> NDArray[np.uint8]:
        """The mask (H, W) of a pair at its own size; of its image only the size is read.

        Raises:
            MaskError: The mask cannot be used, or has another size than its image.
            UnreadableImageError: The image cannot be opened.
        """
        pair = self.pairs[number]
        mask_HW = self.masks(pair.mask)
        _require_size(pair, mask_HW.shape, upright_size(pair.image))
        return mask_HW

    def _one(self, pair: Pair) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        picture = self.recipe.open(pair.image)
        mask_HW = self.masks(pair.mask)
        _require_size(pair, mask_HW.shape, (picture.height, picture.width))
        return self.recipe.pixels(picture), self._fitted(mask_HW)

    def _fitted(self, mask_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A mask at the size of its image as the recipe makes it, if it trains."""
        size = self.recipe.fitted((mask_HW.shape[0], mask_HW.shape[1]))
        return resized_mask(mask_HW, size) if self.trains else mask_HW


def _require_size(pair: Pair, mask: Sequence[int], image: Sequence[int]) -> None:
    """Refuse a mask of another size than its image."""
    if tuple(mask) == tuple(image):
        return
    turned = (
        " The image is turned by its EXIF tag, the mask is not: turn the mask, or remove the tag."
        if tuple(mask) == tuple(reversed(image))
        else ""
    )
    raise MaskError(
        f"The mask {pair.mask} is {mask[0]} x {mask[1]} pixels, and its image {pair.image} "
        f"{image[0]} x {image[1]}.{turned or ' Give both one size.'}"
    )


def _stacked(arrays: Sequence[NDArray[np.uint8]], fill: int) -> Tensor:
    """One tensor of arrays (..., H, W), the smaller ones padded."""
    height, width = (max(array.shape[side] for array in arrays) for side in (-2, -1))
    if all(array.shape[-2:] == (height, width) for array in arrays):
        return torch.from_numpy(np.stack(arrays))
    whole = torch.full((len(arrays), *arrays[0].shape[:-2], height, width), fill, dtype=torch.uint8)
    for row, array in enumerate(arrays):
        whole[row, ..., : array.shape[-2], : array.shape[-1]] = torch.from_numpy(array.copy())
    return whole
