"""The boxes of a picture in its own pixels, after all checks.

Shapes: N boxes
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "MOST_SHARE",
    "Annotations",
    "Boxes",
    "Picture",
    "own_boxes",
    "require_images",
    "require_pixels",
]

#: Shares of width and height may be rounded, and be a little above 1.
MOST_SHARE = 1.01

_ROUNDING = 0.5  # pixels by which a box may exceed its image without being counted
_SHOWN = 3  # files that a message names


@dataclass(frozen=True, eq=False)
class Boxes:
    """The boxes of a picture, which may be none.

    Args:
        size: Height and width of the picture itself, upright.
        corners: float32 (N, 4), x1, y1, x2, y2 in its pixels, x to the right and y down.
        labels: int64 (N,), their classes.
        crowd: bool (N,), those that stand for many objects: they do not count as a miss, and are
            background in training.
        outside: Boxes that reached beyond the picture and were clipped.
        without_area: Names of the boxes that were left out, as they have no area.
    """

    size: tuple[int, int]
    corners: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    outside: int = 0
    without_area: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Picture:
    """An image and its boxes; `name` is its path below the folder of its part."""

    name: str
    image: Path
    boxes: Boxes


@dataclass(frozen=True, eq=False)
class Annotations:
    """What the files of a part say.

    Args:
        source: The file, or the folder of files, that holds the boxes.
        names: The classes; labels are their places.
        listed: Whether the part lists its classes; if not, these are the ones that were found.
        pictures: All images, also those without a box.
    """

    source: Path
    names: list[str]
    listed: bool
    pictures: list[Picture]


def own_boxes(
    corners: ArrayLike,
    *,
    labels: Sequence[int],
    size: tuple[int, int],
    name: Callable[[int], str],
    crowd: Sequence[bool] | None = None,
) -> Boxes:
    """Boxes with these corners (N, 4), clipped to a picture of `size`; `name` is that of each one.

    Boxes of zero width or height, which public data sets hold, are left out and named.

    Raises:
        ValueError: A box is not finite, has its corners the wrong way round, or lies wholly outside
            of the picture.
    """
    given_N4 = np.asarray(corners, dtype=np.float32).reshape(-1, 4)
    limits_4 = np.array([size[1], size[0], size[1], size[0]], dtype=np.float32)
    clipped_N4 = np.clip(given_N4, 0, limits_4)
    has_area_N = (given_N4[:, :2] != given_N4[:, 2:]).all(axis=1)
    for good_N, fault in (
        (np.isfinite(given_N4).all(axis=1), "is not finite. Correct or remove it."),
        (
            (given_N4[:, :2] <= given_N4[:, 2:]).all(axis=1),
            "has its corners the wrong way round; expected x1 < x2 and y1 < y2. Correct it.",
        ),
        (
            (clipped_N4[:, :2] < clipped_N4[:, 2:]).all(axis=1) | ~has_area_N,
            f"lies outside of its image, which has {size[0]} x {size[1]} pixels (height x width). "
            "Are the boxes those of another size or of another image?",
        ),
    ):
        if not good_N.all():
            wrong = int(good_N.argmin())
            found = ", ".join(f"{value:g}" for value in given_N4[wrong])
            raise ValueError(f"{name(wrong)}: the box (x1, y1, x2, y2) = ({found}) {fault}")
    beyond_N = (np.abs(given_N4 - clipped_N4) > _ROUNDING).any(axis=1)
    return Boxes(
        size=size,
        corners=clipped_N4[has_area_N],
        labels=np.asarray(labels, dtype=np.int64)[has_area_N],
        crowd=np.array(crowd or [False] * len(given_N4), dtype=bool)[has_area_N],
        outside=int(beyond_N[has_area_N].sum()),
        without_area=tuple(name(int(place)) for place in np.flatnonzero(~has_area_N)),
    )


def require_pixels(pictures: Sequence[Picture], source: Path) -> None:
    """Refuse boxes that are shares of the image where pixels are expected: all are about 1 or less.

    Raises:
        ValueError: They are.
    """
    first = next((picture for picture in pictures if len(picture.boxes.corners)), None)
    if first is None or any((p.boxes.corners > MOST_SHARE).any() for p in pictures):
        return
    found = ", ".join(f"{value:g}" for value in first.boxes.corners[0])
    raise ValueError(
        f"{source}: no number of any box is above {MOST_SHARE}, such as ({found}) of the image "
        f"{first.name}: they are shares of width and height, and pixels are expected. Multiply "
        "them by the sizes of the images, or write YOLO files."
    )


def require_images(paths: Sequence[Path], source: Path, folder: Path) -> None:
    """Refuse annotations of images that are not there.

    Raises:
        FileNotFoundError: Some are not.
    """
    missing = [path for path in paths if not path.is_file()]
    if missing:
        some = ", ".join(_below(path, folder) for path in missing[:_SHOWN])
        remedy = (
            "Are these the annotations of another set?"
            if len(missing) == len(paths)
            else "Put them there, or remove their annotations."
        )
        raise FileNotFoundError(
            f"{source}: {len(missing)} of {len(paths)} images are not in {folder}, such as {some}. "
            f"{remedy}"
        )


def _below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
