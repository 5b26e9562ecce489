"""Image files decoded once into an array that is mapped into memory, for all processes and runs.

A cache is a folder with room for every image of an official part, of which those are decoded that
were asked for: splits, subsets and seeds share it, and a subset of a hundred images decodes a
hundred. Its array is sparse, so what is not decoded takes no room on file systems that know this.
Rows are marked as ready after their bytes are on the disk, so that a process that is killed loses
one block at most. Each row has the size and the time of its file, which are compared at every
start, and a CRC-32, which each process compares when it reads the row for the first time.

Shapes: N images of a part, n chosen images, B images read at once, H height, W width
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
import zlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from datamodules.cache_files import array_header, force, map_array, new_folder, require_room
from datamodules.loading import decode_images
from datamodules.locks import locked
from datamodules.recipe import ImageRecipe, UnreadableImageError
from datamodules.splits import IntArray

__all__ = ["ImageCache", "ImageFiles", "open_images"]

_FORMAT = 2
_BLOCK_BYTES = 1 << 25  # of decoded images between two marks
_IMAGES, _ROWS, _ABOUT = "images.npy", "rows.npy", "cache.json"
_ROW = np.dtype([("bytes", "<i8"), ("modified_ns", "<i8"), ("crc32", "<u4"), ("ready", "?")])
_SOURCE = ["bytes", "modified_ns"]  # of the image file


@dataclass(frozen=True)
class ImageFiles:
    """The image files of an official part, and how they are decoded.

    Args:
        paths: of every image (N,), below `folder`.
        folder: the names that a cache remembers begin here.
        recipe: what decodes them; it has a size.
        what: their name, for people.
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
        """What a cache must have been made from: names, size and what decodes them."""
        start = len(os.fspath(self.folder)) + 1
        names = "\n".join(os.fspath(path)[start:] for path in self.paths)
        return {
            "format": _FORMAT,
            "images": len(self.paths),
            "names_sha256": hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest(),
            "size": list(self.size),
            "fit": self.recipe.fit,
            "transparency": self.recipe.transparency,
            "pillow": PIL.__version__,  # another version may round otherwise
        }

    def sources(self, positions: IntArray) -> NDArray[Any]:
        """Bytes and time of change (n,) of the files at these positions; nothing of it is read.

        Raises:
            UnreadableImageError: a file is not there.
        """
        found = np.zeros(len(positions), dtype=_ROW)
        for row, position in enumerate(positions):
            path = self.paths[position]
            try:
                stat = os.stat(path)
            except OSError as error:
                raise UnreadableImageError(
                    f"Cannot read the image {path} ({error.strerror}). Replace or remove this file."
                ) from error
            found[row] = (stat.st_size, stat.st_mtime_ns, 0, False)
        return found


class ImageCache:
    """Decoded images of `files`, read from the cache in `folder`; see `open_images`."""

    #: Damaged rows are told once a process.
    told: ClassVar[set[Path]] = set()

    def __init__(self, folder: Path, files: ImageFiles, rows: NDArray[Any]) -> None:
        self.folder = folder
        self.files = files
        self.size = files.size
        self.rows = rows
        self._checked = np.zeros(len(rows), dtype=bool)
        self._map: np.memmap[Any, Any] | None = None

    def holds(self, positions: IntArray) -> bool:
        """Whether all of these are decoded."""
        return bool(self.rows["ready"][positions].all())

    def read(self, positions: IntArray) -> dict[str, Tensor]:
        """`image` uint8 (B, 3, H, W) at these positions of the part, which must be ready.

        A row that does not have its checksum is decoded from its file again, also in the cache.

        Warns:
            UserWarning: there was such a row.

        Raises:
            UnreadableImageError: the cache was changed while it was in use.
        """
        try:
            images = self.open()
        except (OSError, ValueError) as error:
            raise UnreadableImageError(
                f"The cache {self.folder} was changed while it was in use ({error}). Run again."
            ) from error
        image_BCHW = np.take(np.asarray(images), positions, axis=0)
        unsure = np.flatnonzero(~self._checked[positions])
        if len(unsure):
            self._check(image_BCHW, unsure, positions)
        return {"image": torch.from_numpy(image_BCHW)}

    def _check(self, image_BCHW: NDArray[np.uint8], unsure: IntArray, positions: IntArray) -> None:
        """Compare the checksums of these rows of a batch, and mend the rows."""
        found = np.array([zlib.crc32(image_BCHW[row]) for row in unsure], dtype=np.uint32)
        good = found == self.rows["crc32"][positions[unsure]]
        self._checked[positions[unsure[good]]] = True
        if good.all():
            return
        bad = unsure[~good]
        if self.folder not in self.told:
            self.told.add(self.folder)
            path = self.files.paths[positions[bad[0]]]
            warnings.warn(
                f"The cache {self.folder} is damaged: the image of {path} does not have the "
                "checksum with which it was written. Such images are decoded again.",
                stacklevel=4,
            )
        sources = self.files.sources(positions[bad])
        image_BCHW[bad] = self.files.decode(positions[bad]).numpy()
        with suppress(OSError, ValueError), _lock(self.folder):
            now = _load(self.folder, self.files)  # it may be another one by now
            if now is not None:
                now.write(positions[bad], image_BCHW[bad], sources)
                self.rows[positions[bad]] = now.rows[positions[bad]]

    def fill(self, positions: IntArray) -> None:
        """Decode those of these images that are not there yet; call it under the lock.

        Raises:
            UnreadableImageError: an image cannot be decoded.
            OSError: no room on the disk, or it cannot be written.
        """
        absent = positions[~self.rows["ready"][positions]]
        image_bytes = 3 * self.size[0] * self.size[1]
        require_room(self.folder, len(absent) * image_bytes)
        block = max(1, _BLOCK_BYTES // image_bytes)
        with tqdm(
            total=len(absent),
            desc=f"Caching {self.files.what}",
            unit="image",
            delay=2,
            disable=None,
        ) as bar:
            for start in range(0, len(absent), block):
                some = absent[start : start + block]
                sources = self.files.sources(some)  # before they are read: a change is seen then
                self.write(some, self.files.decode(some, bar).numpy(), sources)

    def write(self, positions: IntArray, images: NDArray[np.uint8], sources: NDArray[Any]) -> None:
        """Put images (n, 3, H, W) into the array, and then mark them as ready."""
        begin, image_bytes = self.open().offset, images[0].nbytes
        with (self.folder / _IMAGES).open("r+b") as file:
            for position, image in zip(positions, images, strict=True):
                file.seek(begin + int(position) * image_bytes)
                file.write(image.data)
            force(file)
        sources["crc32"] = [zlib.crc32(image) for image in images]
        sources["ready"] = True
        self.rows[positions] = sources
        temporary = self.folder / f".{_ROWS}.new"
        _save_rows(temporary, self.rows)
        os.replace(temporary, self.folder / _ROWS)

    def open(self) -> np.memmap[Any, Any]:
        """The map (N, 3, H, W) of this process.

        Raises:
            OSError: it is not there.
            ValueError: it is cut short, or another array.
        """
        if self._map is None:
            shape = (len(self.rows), 3, *self.size)
            mapped = map_array(self.folder / _IMAGES, shape=shape, kind=np.uint8)
            assert isinstance(mapped, np.memmap)
            self._map = mapped
        return self._map

    def __getstate__(self) -> dict[str, Any]:
        # A pickled map would hold all of its bytes; the one that is opened instead is unchecked.
        return {**self.__dict__, "_map": None, "_checked": np.zeros_like(self._checked)}


def open_images(folder: Path, files: ImageFiles, positions: IntArray) -> ImageCache:
    """The cache in `folder`, with at least these images (n,) decoded; made where it is missing.

    Of several processes one decodes, and the others wait for it.

    Warns:
        UserWarning: there is one, but it was made from other files, or it is damaged; it is made
            again.

    Raises:
        UnreadableImageError: an image cannot be decoded.
        OSError: no room on the disk, or it cannot be written.
    """
    with suppress(OSError, ValueError):  # a cache that is complete needs no folder to write to
        ready = _load(folder, files, fresh=positions)
        if ready is not None and ready.holds(positions):
            return ready
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        found, made = _load_or_say(folder, files, positions), False
        if found is None:
            found, made = _make(folder, files), True
        try:
            found.fill(positions)
        except OSError:
            if made:  # what cannot be finished gives the room back
                shutil.rmtree(folder, ignore_errors=True)
            raise
    return found


def _load(folder: Path, files: ImageFiles, *, fresh: IntArray | None = None) -> ImageCache | None:
    """The cache in `folder`, if there is one.

    Args:
        folder: of the cache.
        files: what it must have been made from.
        fresh: positions whose files must be as they were when they were decoded.

    Raises:
        OSError: it cannot be read.
        ValueError: it was made from something else, or it is damaged.
    """
    if not folder.is_dir():
        return None
    found, wanted = json.loads((folder / _ABOUT).read_text(encoding="utf-8")), files.identity()
    if found != wanted:
        other = [
            key for key in wanted if not isinstance(found, dict) or found.get(key) != wanted[key]
        ]
        raise ValueError(f"it was made from other files or in another way ({', '.join(other)})")
    rows = np.array(map_array(folder / _ROWS, shape=(len(files.paths),), kind=_ROW))
    if rows["ready"].view(np.uint8).max(initial=0) > 1:  # NumPy relies on 0 and 1
        raise ValueError(f"{_ROWS} is damaged")
    cache = ImageCache(folder, files, rows)
    cache.open()
    if fresh is not None:
        _require_fresh(cache, fresh[rows["ready"][fresh]])
    return cache


def _require_fresh(cache: ImageCache, positions: IntArray) -> None:
    now, then = cache.files.sources(positions)[_SOURCE], cache.rows[positions][_SOURCE]
    changed = np.flatnonzero(now != then)
    if len(changed):
        path = cache.files.paths[positions[changed[0]]]
        raise ValueError(f"images that changed since: {len(changed)}, the first is {path}")


def _load_or_say(folder: Path, files: ImageFiles, positions: IntArray) -> ImageCache | None:
    try:
        return _load(folder, files, fresh=positions)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        warnings.warn(f"The cache {folder} is made again: {reason}.", stacklevel=4)
        return None


def _make(folder: Path, files: ImageFiles) -> ImageCache:
    """A cache of which nothing is decoded."""
    height, width = files.size
    shape = (len(files.paths), 3, height, width)
    rows = np.zeros(len(files.paths), dtype=_ROW)
    with new_folder(folder) as staging:
        with (staging / _IMAGES).open("wb") as file:
            file.write(array_header(shape, np.uint8))
            file.truncate(file.tell() + int(np.prod(shape)))
            force(file)
        _save_rows(staging / _ROWS, rows)
        (staging / _ABOUT).write_text(json.dumps(files.identity()) + "\n", encoding="utf-8")
    return ImageCache(folder, files, rows)


def _save_rows(path: Path, rows: NDArray[Any]) -> None:
    with path.open("wb") as file:
        file.write(array_header(rows.shape, rows.dtype) + rows.tobytes())
        force(file)


def _lock(folder: Path) -> AbstractContextManager[None]:
    return locked(folder.with_name(f".{folder.name}.lock"))
