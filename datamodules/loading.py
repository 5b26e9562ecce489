"""From files to batches: decoded images, and data sets that fetch whole batches.

Shapes: n images of a split, H height, W width
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lightning.fabric.utilities.seed import pl_worker_init_function
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from tqdm import tqdm

from datamodules.recipe import FORMATS, ImageRecipe, UnreadableImageError
from datamodules.splits import IntArray

__all__ = [
    "ArrayDataset",
    "FileDataset",
    "LateDataset",
    "ReadDataset",
    "Reader",
    "as_is",
    "begin_worker",
    "by_stem",
    "decode_images",
    "end_workers",
    "folders_in",
    "image_suffixes",
    "is_text",
    "sides",
    "text_of",
    "unreadable",
    "visible_files",
]


def begin_worker(number: int) -> None:
    """Set up a worker of a data loader.

    It ignores SIGTERM and leaves its end to the run. `timeout`, `docker stop` and schedulers send
    SIGTERM to all processes of a run; if a worker died of it, torch would raise an error at any
    line of the run, even while it saves. And it exits if it cannot pass a batch on, such as without
    room in /dev/shm: the run would wait for that batch for ever.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Queue._on_queue_feeder_error = staticmethod(_give_up)  # type: ignore[attr-defined]
    if os.environ.get("PL_SEED_WORKERS", "0") != "0":
        pl_worker_init_function(number)  # as Lightning does if a loader has no function


@atexit.register  # after multiprocessing's handler, so it is called before that
def end_workers() -> None:
    """Kill workers that are left at exit: they ignore SIGTERM, so Python would wait for ever."""
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    if workers and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch raises an error for a killed worker
    for worker in workers:
        worker.kill()


def _give_up(error: Exception, batch: Any) -> None:
    print(f"kora: a batch cannot be handed over: {error}", file=sys.stderr, flush=True)
    os._exit(1)


class ArrayDataset(Dataset[dict[str, Tensor]]):
    """Tensors with a common first axis, fetched a batch at a time.

    `__getitems__` indexes each tensor once per batch, so there is no Python loop over images; use
    it with `collate_fn=as_is`.
    """

    def __init__(self, columns: dict[str, Tensor]) -> None:
        sizes = {name: len(column) for name, column in columns.items()}
        assert len(set(sizes.values())) == 1, f"columns differ in length: {sizes}"
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {name: column[row] for name, column in self.columns.items()}

    def __getitems__(self, rows: Sequence[int] | NDArray[np.int64]) -> dict[str, Tensor]:
        picked = torch.as_tensor(rows, dtype=torch.int64)
        return {name: column.index_select(0, picked) for name, column in self.columns.items()}


class LateDataset(ArrayDataset):
    """An ArrayDataset that makes each image when it is first read.

    Nothing needs the images that cached features replace.

    Args:
        make: Returns the images (B, 3, H, W) at these rows (B,).
        known: The other columns.
    """

    def __init__(self, make: Callable[[IntArray], Tensor], known: dict[str, Tensor]) -> None:
        super().__init__(known)
        self._make = make
        self._images: Tensor | None = None
        #: Which images (n,) are in memory.
        self.made = np.zeros(len(self), dtype=np.bool_)

    def make(self, rows: Sequence[int] | IntArray | None = None) -> Tensor:
        """Make the missing images of these rows, or of all; returns (n, 3, H, W) with gaps."""
        wanted = np.arange(len(self)) if rows is None else np.unique(np.asarray(rows, np.int64))
        missing = wanted[~self.made[wanted]]
        if len(missing) or self._images is None:
            images = self._make(missing)
            if self._images is None:
                self._images = images.new_empty((len(self), *images.shape[1:]))
            self._images[torch.from_numpy(missing)] = images
            self.made[missing] = True
        return self._images

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {name: column[0] for name, column in self.__getitems__([row]).items()}

    def __getitems__(self, rows: Sequence[int] | NDArray[np.int64]) -> dict[str, Tensor]:
        picked = torch.as_tensor(rows, dtype=torch.int64)
        images = self.make(rows).index_select(0, picked)
        return {"image": images, **super().__getitems__(rows)}

    def __getstate__(self) -> dict[str, Any]:
        self.make()
        return {**self.__dict__, "_make": None}


class FileDataset(Dataset[dict[str, Any]]):
    """The images of a split, read by a recipe one by one, in the workers.

    `indices` (n,) are their positions in the official part, whose files are `paths`.
    """

    def __init__(
        self, paths: Sequence[Path], recipe: ImageRecipe, *, labels: IntArray, indices: IntArray
    ) -> None:
        self.paths = [paths[position] for position in indices]
        self.recipe = recipe
        self.labels = labels
        self.indices = indices

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> dict[str, Any]:
        image = torch.from_numpy(self.recipe(self.paths[row]))
        return {"image": image, "label": int(self.labels[row]), "index": int(self.indices[row])}

    def __getitems__(self, rows: list[int]) -> Any:
        return default_collate([self[row] for row in rows])


class Reader(Protocol):
    """A source of images. It can be pickled, and opens its files anew for each call."""

    def read(self, numbers: IntArray) -> dict[str, Tensor]:
        """A batch of the images of these numbers: `image`, and any further targets."""


class ReadDataset(Dataset[dict[str, Tensor]]):
    """The images of a split, read a whole batch at a time. Use it with `collate_fn=as_is`.

    `numbers` (n,) identify the images for the reader; `indices` are their positions in the official
    part.
    """

    def __init__(
        self, reader: Reader, numbers: IntArray, *, labels: IntArray, indices: IntArray
    ) -> None:
        self.reader = reader
        self.numbers = numbers
        self.labels = labels
        self.indices = indices

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {name: column[0] for name, column in self.__getitems__([row]).items()}

    def __getitems__(self, rows: Sequence[int] | NDArray[np.int64]) -> dict[str, Tensor]:
        picked = np.asarray(rows, dtype=np.int64)
        return {
            **self.reader.read(self.numbers[picked]),
            "label": torch.from_numpy(self.labels[picked]),
            "index": torch.from_numpy(self.indices[picked]),
        }


def as_is(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Collate function for data sets whose `__getitems__` already returns a batch."""
    return batch


def decode_images(
    paths: Sequence[Path], recipe: ImageRecipe, *, what: str, bar: tqdm[Any] | None = None
) -> Tensor:
    """uint8 images (n, 3, H, W) of these files, decoded in threads by a recipe with a size.

    A progress bar, named after `what`, appears if it takes longer than two seconds; a given `bar`
    is moved instead.

    Raises:
        UnreadableImageError: as `ImageRecipe`.
    """
    assert recipe.size is not None
    images = torch.empty((len(paths), 3, *recipe.size), dtype=torch.uint8)
    target = images.numpy()

    def decode(row: int) -> None:
        target[row] = recipe(paths[row])

    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        done: Iterable[None] = pool.map(decode, range(len(paths)))
        if bar is None:
            done = tqdm(done, total=len(paths), desc=f"Decoding {what}", delay=2, disable=None)
        for _ in done:
            if bar is not None:
                bar.update()
    finally:
        pool.shutdown(cancel_futures=True)
    return images


def sides(image_size: int | Sequence[int] | None) -> tuple[int, int]:
    """Height and width of the option `image_size`.

    Raises:
        ValueError: it is missing, or not one or two positive numbers.
    """
    both = (image_size,) * 2 if isinstance(image_size, int) else tuple(image_size or ())
    if len(both) != 2 or min(both) < 1:
        raise ValueError(
            f"data.image_size is {image_size}; give one number of pixels, or [height, width]."
        )
    return both[0], both[1]


def visible_files(folder: Path) -> Iterator[Path]:
    """Files at any depth below a folder, folder by folder, sorted; hidden ones are left out.

    A folder that is a link is read too, each folder once.
    """
    seen: set[str] = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if name[0] != ".")
        yield from (Path(here, name) for name in sorted(names) if name[0] != ".")


def is_text(name: str) -> bool:
    """Whether a file's name is UTF-8; Python turns other bytes into surrogates."""
    return not any("\ud800" <= sign <= "\udfff" for sign in name)


def folders_in(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted, without hidden ones."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


def text_of(file: Path) -> str:
    """A text in UTF-8, with or without a byte order mark.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no such text.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: cannot be read as text in UTF-8, from byte {error.start} on. Save it in "
            "UTF-8."
        ) from error


def by_stem(folder: Path, suffixes: Collection[str]) -> dict[str, Path]:
    """Files below a folder with these endings, by their paths in it without the ending.

    Raises:
        ValueError: Two have one name.
    """
    found: dict[str, Path] = {}
    for path in visible_files(folder):
        if path.suffix.lower() not in suffixes:
            continue
        key = path.relative_to(folder).with_suffix("").as_posix()
        if key in found:
            raise ValueError(
                f"{found[key]} and {path} have one name, so it is not clear which belongs to "
                f"{key} of the other folder. Rename or remove one."
            )
        found[key] = path
    return found


def image_suffixes() -> frozenset[str]:
    """File name endings of pictures, such as .jpg."""
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, form in known.items() if form in FORMATS)


def unreadable(paths: Sequence[Path], recipe: ImageRecipe, *, what: str) -> dict[int, str]:
    """Places of the files that cannot be decoded, with the reason of each; decodes all, in threads.

    A progress bar, named after `what`, appears if it takes longer than two seconds.
    """

    def reason(path: Path) -> str | None:
        try:
            recipe(path)
        except UnreadableImageError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        reasons = pool.map(reason, paths)
        shown = tqdm(reasons, total=len(paths), desc=f"Checking {what}", delay=2, disable=None)
        return {place: text for place, text in enumerate(shown) if text is not None}
