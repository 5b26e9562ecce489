"""Data sets of image files whose decoded images are kept: the option `cache`.

Shapes: B images a batch, n images of a split, H height, W width
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.download import expand_path
from datamodules.image_cache import ImageCache, ImageFiles, open_images
from datamodules.loading import ArrayDataset
from datamodules.splits import IntArray

__all__ = ["CachedImages", "cache_parent", "cached_images", "describe_caches"]


class CachedImages(ArrayDataset):
    """The images of a split, a batch at a time from a mapped cache; use `collate_fn=as_is`.

    Args:
        cache: holds the images.
        labels: label of each image (n,).
        indices: position of each image (n,) in its official part.
    """

    def __init__(self, cache: ImageCache, *, labels: IntArray, indices: IntArray) -> None:
        super().__init__({"label": torch.from_numpy(labels), "index": torch.from_numpy(indices)})
        self.cache = cache

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {name: column[0] for name, column in self.__getitems__([row]).items()}

    def __getitems__(self, rows: Sequence[int] | NDArray[np.int64]) -> dict[str, Tensor]:
        columns = super().__getitems__(rows)
        return {**self.cache.read(columns["index"].numpy()), **columns}


def cache_parent(option: bool | str | None, *, beside: Path, default: bool) -> Path | None:
    """Folder in which caches lie by the option `cache`; None: there are to be none.

    Args:
        option: true for beside the data, a folder, or false; None: `default`.
        beside: the data.
        default: what None means.
    """
    if isinstance(option, str):
        return expand_path(option, key="data.cache")
    wanted = default if option is None else option
    return beside.absolute().parent if wanted else None


def cached_images(
    folder: Path, files: ImageFiles, *, labels: IntArray, indices: IntArray
) -> CachedImages | None:
    """The images of a split from the cache in `folder`, made or completed where needed.

    None where it cannot be written.

    Warns:
        UserWarning: it cannot be written; or it was damaged or made from other files, and is made
            again.

    Raises:
        UnreadableImageError: an image cannot be decoded.
    """
    try:
        cache = open_images(folder, files, indices)
    except (OSError, NotImplementedError) as error:  # some file systems have no locks
        reason = str(error).partition("\n")[0].rstrip(".")
        warnings.warn(
            f"Without a cache the images of {files.what} are decoded anew in every run: {reason}. "
            "Set data.cache to a folder with room, or to false.",
            stacklevel=3,
        )
        return None
    return CachedImages(cache, labels=labels, indices=indices)


def describe_caches(datasets: Iterable[Any]) -> str | None:
    """One sentence about the caches of these data sets; None if none has one."""
    used = [dataset.cache for dataset in datasets if isinstance(dataset, CachedImages)]
    if not used:
        return None
    caches = {cache.folder: cache for cache in used}
    images = sum(int(cache.ready.sum()) for cache in caches.values())
    mib = images * 3 * math.prod(used[0].files.size) / 2**20
    folders = " and ".join(str(folder) for folder in caches)
    return f"{images:,} decoded images lie in {folders} ({mib:.4g} MiB)."
