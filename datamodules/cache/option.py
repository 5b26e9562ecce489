"""The option `cache`: data sets of image files that keep decoded images."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datamodules.cache.images import ImageCache, ImageFiles, open_images
from datamodules.download import expand_path
from datamodules.loading import FileDataset, ReadDataset
from datamodules.splits import IntArray

__all__ = ["cache_parent", "cached_images", "cached_or_files", "describe_caches"]


def cache_parent(option: bool | str | None, *, beside: Path, default: bool) -> Path | None:
    """Folder for caches by the option `cache`; None: no cache.

    True is next to the data, a string names a folder, and None means `default`.
    """
    if isinstance(option, str):
        return expand_path(option, key="data.cache")
    wanted = default if option is None else option
    return beside.absolute().parent if wanted else None


def cached_images(
    folder: Path, files: ImageFiles, *, labels: IntArray, indices: IntArray
) -> ReadDataset | None:
    """The images of a split from the cache in `folder`, made or completed if needed.

    None if it cannot be written.

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
    return ReadDataset(cache, indices, labels=labels, indices=indices)


def cached_or_files(
    folder: Path | None, files: ImageFiles, *, labels: IntArray, indices: IntArray
) -> ReadDataset | FileDataset:
    """The images of a split from the cache in `folder`, as `cached_images`, else from their files.

    None as the folder: no cache.
    """
    if folder is not None:
        dataset = cached_images(folder, files, labels=labels, indices=indices)
        if dataset is not None:
            return dataset
    return FileDataset(files.paths, files.recipe, labels=labels, indices=indices)


def describe_caches(datasets: Iterable[Any]) -> str | None:
    """One sentence about the caches of these data sets; None if none has one."""
    readers = [getattr(dataset, "reader", None) for dataset in datasets]
    caches = {reader.folder: reader for reader in readers if isinstance(reader, ImageCache)}
    if not caches:
        return None
    images = sum(int(cache.ready.sum()) for cache in caches.values())
    mib = images * 3 * math.prod(next(iter(caches.values())).files.size) / 2**20
    folders = " and ".join(str(folder) for folder in caches)
    return f"{images:,} decoded images are in {folders} ({mib:.4g} MiB)."
