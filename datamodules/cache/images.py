"""Image files decoded once, for all processes and runs.

A cache (see rows.py) has a row for every image of an official part, but decodes only those that are
needed: a subset of a hundred images decodes a hundred. Splits, subsets and seeds share it. The
stamp of a row is the size and the time of its file, compared at every start.

Shapes: N images of a part, n chosen images, B images read at once, H height, W width
"""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from datamodules.cache.rows import Block, RowCache, alone
from datamodules.loading import decode_images
from datamodules.recipe import ImageRecipe, UnreadableImageError
from datamodules.splits import IntArray

__all__ = ["ImageCache", "ImageFiles", "open_images"]

_BLOCK_BYTES = 1 << 25  # of images decoded at once


@dataclass(frozen=True)
class ImageFiles:
    """The image files (N,) of an official part, below `folder`, and what decodes them to one size.

    `what` is their name, for people.
    """

    paths: Sequence[Path]
    folder: Path
    recipe: ImageRecipe
    what: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every image."""
        assert self.recipe.size is not None
        return self.recipe.size

    def decode(self, positions: IntArray, bar: tqdm[Any] | None = None) -> Tensor:
        """uint8 images (n, 3, H, W) at these positions, as `decode_images` gives them."""
        chosen = [self.paths[position] for position in positions]
        return decode_images(chosen, self.recipe, what=self.what, bar=bar)

    def identity(self) -> dict[str, Any]:
        """What a cache depends on: names, size and what decodes them."""
        folder = os.path.join(self.folder, "")
        names = "\n".join(os.fspath(path).removeprefix(folder) for path in self.paths)
        return {
            "images": len(self.paths),
            "names_sha256": hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest(),
            "size": list(self.size),
            "fit": self.recipe.fit,
            "transparency": self.recipe.transparency,
            "pillow": PIL.__version__,  # another version may round differently
        }

    def stamps(self, positions: IntArray) -> NDArray[np.int64]:
        """Bytes and time of change (n, 2) of the files at these positions; does not read them.

        Raises:
            UnreadableImageError: a file is missing.
        """
        found = []
        for position in positions:
            path = self.paths[position]
            try:
                stat = os.stat(path)
            except OSError as error:
                raise UnreadableImageError(
                    f"Cannot read the image {path} ({error.strerror}). Replace or remove this file."
                ) from error
            found.append((stat.st_size, stat.st_mtime_ns))
        return np.array(found, dtype=np.int64).reshape(-1, 2)


class ImageCache(RowCache):
    """Decoded images of `files`, in a folder; see `open_images`."""

    #: Folders with damage that this process has reported.
    told: ClassVar[set[Path]] = set()

    def __init__(self, folder: Path, files: ImageFiles) -> None:
        arrays = {"images": ((len(files.paths), 3, *files.size), np.uint8)}
        super().__init__(folder, files.identity(), arrays)
        self.files = files

    def read(self, positions: IntArray) -> dict[str, Tensor]:
        """`image` uint8 (B, 3, H, W) at these positions of the part, which must be decoded.

        A row with a wrong checksum is decoded again from its file, and replaced in the cache.

        Warns:
            UserWarning: there was such a row.

        Raises:
            UnreadableImageError: the cache was changed while it was in use.
        """
        image_BCHW = self.maps()["images"].take(positions, axis=0)
        damaged = [place for place, _ in self.damaged(positions, {"images": image_BCHW})]
        if damaged:
            image_BCHW[damaged] = self._decoded_again(positions[damaged])
        return {"image": torch.from_numpy(image_BCHW)}

    def _decoded_again(self, positions: IntArray) -> NDArray[Any]:
        if self.folder not in self.told:
            self.told.add(self.folder)
            warnings.warn(
                f"The cache {self.folder} is damaged: the image of {self.files.paths[positions[0]]}"
                " does not have the checksum with which it was written. Such images are decoded "
                "again.",
                stacklevel=4,
            )
        stamps = self.files.stamps(positions)
        images = self.files.decode(positions).numpy()
        with suppress(OSError, ValueError), alone(self.folder):
            now = ImageCache(self.folder, self.files).load()  # another process may have replaced it
            now.records["ready"][positions] = False
            now.fill(positions, lambda *_: [(positions, stamps, {"images": images})], title="")
            self.records[positions] = now.records[positions]
        return images

    def decode(self, positions: IntArray) -> None:
        """Decode the images at these positions that are not there yet; see `fill`."""
        self.fill(positions, self._blocks, title=f"Caching {self.files.what}")

    def _blocks(self, positions: IntArray, bar: tqdm[Any] | None) -> Iterator[Block]:
        size = max(1, _BLOCK_BYTES // (3 * math.prod(self.files.size)))
        for start in range(0, len(positions), size):
            some = positions[start : start + size]
            stamps = self.files.stamps(some)  # before they are read, so that a change is noticed
            yield some, stamps, {"images": self.files.decode(some, bar).numpy()}


def open_images(folder: Path, files: ImageFiles, positions: IntArray) -> ImageCache:
    """The cache in `folder`, with at least these images (n,) decoded; made if it is missing.

    One of several processes decodes; the others wait for it.

    Warns:
        UserWarning: there is one, but it was made from other files, or it is damaged; it is made
            again.

    Raises:
        UnreadableImageError: an image cannot be decoded.
        UnwritableError: no room on the disk, or it cannot be written.
    """
    with suppress(OSError, ValueError):  # a cache that is complete needs no folder to write to
        cache = _load(folder, files, positions)
        if cache.ready[positions].all():
            return cache
    with alone(folder):
        try:
            cache = _load(folder, files, positions)
        except (OSError, ValueError) as error:
            if folder.is_dir():
                reason = str(error).partition("\n")[0]
                warnings.warn(f"The cache {folder} is made again: {reason}.", stacklevel=3)
            cache = ImageCache(folder, files)
        cache.decode(positions)
    return cache


def _load(folder: Path, files: ImageFiles, positions: IntArray) -> ImageCache:
    """The cache in `folder`, if its images at these positions have not changed since.

    Raises:
        OSError: it is not there, or cannot be read.
        ValueError: it was made from something else, or it is damaged.
    """
    cache = ImageCache(folder, files).load()
    decoded = positions[cache.ready[positions]]
    changed = decoded[(files.stamps(decoded) != cache.records["stamp"][decoded]).any(axis=1)]
    if len(changed):
        first = files.paths[changed[0]]
        raise ValueError(f"images that changed since: {len(changed)}, the first is {first}")
    return cache
