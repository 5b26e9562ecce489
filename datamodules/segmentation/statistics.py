"""Statistics of the masks of a split: pixels of each class, and the usual class at each pixel.

Shapes: n images, K classes, H height, W width, h and w of the map
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.segmentation.masks import IGNORED, resized_mask

__all__ = ["MaskStatistics"]

_MOST_MAP = 128  # pixels along the longer side of the map


@dataclass(frozen=True, eq=False)
class MaskStatistics:
    """Statistics over the masks of some images of a split.

    Args:
        images: Images looked at.
        of_images: Images that the split has.
        pixels: Pixels of each class, (K,).
        images_with: Images that show each class, (K,).
        ignored_share: Pixels that are ignored, among all.
        all_ignored: Images of which every pixel is ignored.
        mode_map: uint8 (h, w), the most frequent class at each place of the picture, at most 128
            pixels a side; the most frequent class of all where every pixel is ignored.
    """

    images: int
    of_images: int
    pixels: NDArray[np.int64]
    images_with: NDArray[np.int64]
    ignored_share: float
    all_ignored: int
    mode_map: NDArray[np.uint8] = field(repr=False)

    @classmethod
    def of_masks(
        cls,
        masks: Iterable[NDArray[np.uint8]],
        *,
        num_classes: int,
        image_size: Sequence[int],
        of_images: int,
    ) -> MaskStatistics:
        """Collect them from masks (H, W) of any sizes; `image_size` gives the map its proportions.

        Raises:
            ValueError: There is no mask.
        """
        scale = min(1.0, _MOST_MAP / max(image_size))
        size = [max(1, round(side * scale)) for side in image_size]
        votes_Khw = np.zeros((num_classes, *size), dtype=np.int64)
        pixels_K = np.zeros(num_classes, dtype=np.int64)
        images_K = np.zeros(num_classes, dtype=np.int64)
        images = all_pixels = all_ignored = 0
        for mask_HW in masks:
            images += 1
            all_pixels += mask_HW.size
            counts_K = np.bincount(mask_HW.ravel(), minlength=256)[:num_classes]
            pixels_K += counts_K
            images_K += counts_K > 0
            all_ignored += not counts_K.any()
            small_hw = resized_mask(mask_HW, size)
            rows, columns = np.nonzero(small_hw != IGNORED)
            np.add.at(votes_Khw, (small_hw[rows, columns], rows, columns), 1)
        if not images:
            raise ValueError("There is no mask to take statistics of.")
        mode_hw = np.where(votes_Khw.any(axis=0), votes_Khw.argmax(axis=0), pixels_K.argmax())
        return cls(
            images=images,
            of_images=of_images,
            pixels=pixels_K,
            images_with=images_K,
            ignored_share=1 - int(pixels_K.sum()) / all_pixels,
            all_ignored=all_ignored,
            mode_map=mode_hw.astype(np.uint8),
        )

    @property
    def majority(self) -> int:
        """The most frequent class; the lowest of a tie."""
        return int(self.pixels.argmax())

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON, without the map."""
        plain = {name: value for name, value in vars(self).items() if name != "mode_map"}
        return plain | {name: plain[name].tolist() for name in ("pixels", "images_with")}
