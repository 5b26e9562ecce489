"""Statistics of the boxes of a split: how many of each class, how large, and where.

Shapes: K classes, P typical places, N boxes
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.detection.boxes import Boxes

__all__ = ["BoxStatistics"]

_PLACES = 8  # of each class
_SMALL, _LARGE = 32**2, 96**2  # pixels, as COCO counts them


@dataclass(frozen=True, eq=False)
class BoxStatistics:
    """Statistics over the boxes of some images of a split; crowds are counted, and left out else.

    Args:
        images: Images looked at.
        of_images: Images that the split has.
        empty: Images without a box.
        boxes: Boxes of each class, (K,).
        images_with: Images that show each class, (K,).
        mean_boxes: Mean x1, y1, x2, y2 of each class, (K, 4), as shares of the width and height of
            the picture; NaN for a class without a box.
        places: float32 (K, P, 4), up to 8 typical boxes of each class, as such shares: medians of
            as many parts of its boxes, equal in number; NaN beyond them.
        frequency: Mean number of boxes of each class in an image, (K,).
        crowd: Boxes that stand for many objects.
        small, medium, large: Boxes of less than 32 x 32 pixels, less than 96 x 96, and more, in the
            pixels of the picture itself.
        outside: Boxes that reached beyond their picture and were clipped.
    """

    images: int
    of_images: int
    empty: int
    boxes: NDArray[np.int64]
    images_with: NDArray[np.int64]
    mean_boxes: NDArray[np.float64]
    places: NDArray[np.float32] = field(repr=False)
    frequency: NDArray[np.float64]
    crowd: int
    small: int
    medium: int
    large: int
    outside: int

    @classmethod
    def of_boxes(
        cls, pictures: Iterable[Boxes], *, num_classes: int, of_images: int
    ) -> BoxStatistics:
        """Collect them from the boxes of some pictures.

        Raises:
            ValueError: There is no picture.
        """
        corners: list[NDArray[np.float64]] = [np.zeros((0, 4))]
        labels: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
        areas: list[NDArray[np.float64]] = [np.zeros(0)]
        images_K = np.zeros(num_classes, dtype=np.int64)
        images = empty = crowd = outside = 0
        for found in pictures:
            counted_N = ~found.crowd
            boxes_N4 = found.corners[counted_N].astype(np.float64)
            high, wide = found.size
            corners.append(boxes_N4 / np.array([wide, high, wide, high]))
            labels.append(found.labels[counted_N])
            areas.append(np.prod(boxes_N4[:, 2:] - boxes_N4[:, :2], axis=1))
            images_K[np.unique(labels[-1])] += 1
            images += 1
            empty += not counted_N.any()
            crowd += int(found.crowd.sum())
            outside += found.outside
        if not images:
            raise ValueError("There is no image to take statistics of boxes of.")
        corners_N4, labels_N = np.concatenate(corners), np.concatenate(labels)
        of_class = [corners_N4[labels_N == label] for label in range(num_classes)]
        sizes = np.histogram(np.concatenate(areas), [0, _SMALL, _LARGE, np.inf])[0].tolist()
        boxes_K = np.array([len(some) for some in of_class], dtype=np.int64)
        return cls(
            images=images,
            of_images=of_images,
            empty=empty,
            boxes=boxes_K,
            images_with=images_K,
            mean_boxes=np.array(
                [some.mean(axis=0) if len(some) else np.full(4, np.nan) for some in of_class]
            ),
            places=np.stack([_typical(some) for some in of_class]),
            frequency=boxes_K / images,
            crowd=crowd,
            small=sizes[0],
            medium=sizes[1],
            large=sizes[2],
            outside=outside,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON, without the places; None for the mean of no box."""
        plain = {name: value for name, value in vars(self).items() if name != "places"}
        arrays = ("boxes", "images_with", "frequency")
        means = [None if np.isnan(row).any() else row.tolist() for row in self.mean_boxes]
        return plain | {name: plain[name].tolist() for name in arrays} | {"mean_boxes": means}


def _typical(boxes_N4: NDArray[np.float64]) -> NDArray[np.float32]:
    """(8, 4), the medians of parts of these boxes, halved where they differ most; then NaN."""
    places = np.full((_PLACES, 4), np.nan, dtype=np.float32)
    parts = [boxes_N4] if len(boxes_N4) else []
    while len(parts) < min(_PLACES, len(boxes_N4)):
        widest = max(range(len(parts)), key=lambda place: len(parts[place]))
        part = parts.pop(widest)
        side = int(np.ptp(part, axis=0).argmax())
        ordered = part[part[:, side].argsort(kind="stable")]
        parts += [ordered[: len(part) // 2], ordered[len(part) // 2 :]]
    for place, part in enumerate(parts):
        places[place] = np.median(part, axis=0)
    return places
