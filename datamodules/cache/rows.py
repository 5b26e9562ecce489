"""Rows of arrays that are made once, and then mapped into memory by all processes and runs.

A cache is a folder. `about.json` says what the rows were made from, `rows.npy` has a record of each
row, and a sparse `NAME.npy` holds each array. Rows are written in any order. A row is marked as
ready once its bytes are on the disk: a process that is killed loses the work of a moment or one
block, and the next one resumes. A record holds the stamp of the row's source, and a CRC-32 of the
row of each array, which each process compares when it first reads the row.

Arrays are written as files and not as maps: a full disk is then an error and not a crash. Nothing
is unpickled, headers are compared and not parsed, and no map is pickled.

Shapes: N rows, B rows read or written at once, A arrays
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from datamodules.locks import locked
from datamodules.recipe import UnreadableImageError
from datamodules.splits import IntArray

__all__ = ["Arrays", "Block", "RowCache", "UnwritableError", "alone", "map_array", "new_folder"]

#: Shape (N, ...) and type of each array, by its name.
Arrays = Mapping[str, tuple[tuple[int, ...], Any]]
#: Positions (B,), the stamps of their sources (B, 2) or 0, and their rows (B, ...) of each array.
Block = tuple[IntArray, Any, Mapping[str, NDArray[Any]]]

_FORMAT = 3
_ABOUT, _ROWS = "about.json", "rows.npy"
_MARK_SECONDS = 0.5  # at least, between two waits for the disk
_CHECKED = 64  # rows between two moves of the progress bar


class UnwritableError(OSError):
    """A cache cannot be written."""


class RowCache:
    """Rows in a folder; none of them is ready before `load` or `fill`.

    `of` is what the rows are made from, in plain types.
    """

    def __init__(self, folder: Path, of: Mapping[str, Any], arrays: Arrays) -> None:
        self.folder = folder
        self._about: dict[str, Any] = json.loads(json.dumps({"format": _FORMAT, **of}))
        self.arrays = arrays
        (rows,) = {shape[0] for shape, _ in arrays.values()}
        fields = [("stamp", "<i8", (2,)), ("crc32", "<u4", (len(arrays),)), ("ready", "u1")]
        self.records: NDArray[Any] = np.zeros(rows, dtype=fields)
        self._checked = np.zeros(rows, dtype=bool)
        self._maps: dict[str, NDArray[Any]] | None = None
        self._begun = False

    def __getstate__(self) -> dict[str, Any]:
        # A pickled map would hold all of its bytes. The copy opens its own, and checks it anew.
        return {**self.__dict__, "_maps": None, "_checked": np.zeros_like(self._checked)}

    @property
    def ready(self) -> NDArray[np.bool_]:
        """Which rows (N,) are there."""
        ready: NDArray[np.bool_] = self.records["ready"] == 1
        return ready

    def load(self) -> Self:
        """Read which rows are in the folder already; does not look at their content.

        Raises:
            OSError: there is no cache, or it cannot be read.
            ValueError: it was made from something else, or it is damaged.
        """
        _require_file(self.folder / _ABOUT)
        found = json.loads((self.folder / _ABOUT).read_text(encoding="utf-8"))
        if not isinstance(found, dict) or found.pop("crc32", None) != _checksum(found):
            raise ValueError(f"{_ABOUT} does not have the checksum with which it was written")
        other = [key for key, value in self._about.items() if found.get(key) != value]
        if other:
            raise ValueError(f"it was made from other files or in another way ({', '.join(other)})")
        kind = self.records.dtype
        records = map_array(self.folder / _ROWS, shape=self.records.shape, kind=kind)
        self._maps = self._mapped()
        self.records, self._begun = records.copy(), True
        return self

    def maps(self) -> dict[str, NDArray[Any]]:
        """The arrays (N, ...), mapped by the first call of each process.

        Raises:
            UnreadableImageError: they are not what they were when the cache was loaded.
        """
        if self._maps is None:
            try:
                self._maps = self._mapped()
            except (OSError, ValueError) as error:
                raise UnreadableImageError(
                    f"The cache {self.folder} was changed while it was in use ({error}). Run again."
                ) from error
        return self._maps

    def damaged(
        self, positions: IntArray, batch: Mapping[str, NDArray[Any]]
    ) -> list[tuple[int, str]]:
        """Which of these rows (B, ...) differ from their checksums: places in B, and the array.

        This process does not check a good row again.
        """
        unsure = np.flatnonzero(~self._checked[positions])
        if not len(unsure):
            return []
        good_BA = self._crc32(batch, unsure) == self.records["crc32"][positions[unsure]]
        good_B, names = good_BA.all(axis=1), list(self.arrays)
        self._checked[positions[unsure[good_B]]] = True
        bad = np.flatnonzero(~good_B)
        return [(int(unsure[row]), names[int(good_BA[row].argmin())]) for row in bad]

    def drop_damaged(self) -> IntArray:
        """Compare all rows with their checksums; returns rows that differ, now no longer ready."""
        was_ready = self.ready
        title = f"Checking {self.folder.name[:12]}"
        with ExitStack() as stack:
            files = {}
            for name, (shape, kind) in self.arrays.items():
                files[name] = stack.enter_context((self.folder / f"{name}.npy").open("rb"))
                files[name].seek(len(_header(shape, kind)))
            # Read and not mapped: for a single pass, mapping takes three times as long.
            for start in tqdm(range(0, len(was_ready), _CHECKED), title, delay=2, disable=None):
                positions = np.arange(start, min(start + _CHECKED, len(was_ready)))
                batch = {}
                for name, (shape, kind) in self.arrays.items():
                    here = (len(positions), *shape[1:])
                    batch[name] = np.fromfile(files[name], kind, math.prod(here)).reshape(here)
                for place, _ in self.damaged(positions, batch):
                    self.records["ready"][positions[place]] = 0
        return np.flatnonzero(was_ready & ~self.ready)

    def fill(
        self, positions: IntArray, blocks: Callable[[IntArray, Any], Iterable[Block]], *, title: str
    ) -> None:
        """Write the rows (n,) that are not ready; call it under the lock.

        If nothing was loaded, an empty cache replaces the folder first.

        `blocks` makes the rows and moves the progress bar. If it fails, finished rows stay.

        Raises:
            UnwritableError: the disk is full, or cannot be written; a new cache is removed.
        """
        absent = positions[~self.ready[positions]]
        given = self._begun
        if given and not len(absent):
            return
        try:
            if not given:
                self._begin()
            self._require_room(len(absent))
            done = len(positions) - len(absent)
            with tqdm(
                total=len(positions), initial=done, desc=title, unit="image", delay=2, disable=None
            ) as bar:
                self._write_all(blocks(absent, bar))
        except UnwritableError:
            if not given:
                shutil.rmtree(self.folder, ignore_errors=True)
            raise
        self.maps()  # before another process makes it again

    def _begin(self) -> None:
        with _writing(), new_folder(self.folder) as staging:
            for name, (shape, kind) in self.arrays.items():
                with (staging / f"{name}.npy").open("wb") as file:
                    file.write(_header(shape, kind))
                    file.truncate(file.tell() + math.prod(shape) * np.dtype(kind).itemsize)
            content = _header(self.records.shape, self.records.dtype) + self.records.tobytes()
            (staging / _ROWS).write_bytes(content)
            about = {**self._about, "crc32": _checksum(self._about)}
            (staging / _ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        self._begun = True

    def _write_all(self, blocks: Iterable[Block]) -> None:
        marked, pause = time.monotonic(), _MARK_SECONDS
        try:
            for block in blocks:
                self._write(*block)
                begun = time.monotonic()
                if begun - marked >= pause:
                    self._mark()
                    marked = time.monotonic()
                    pause = max(_MARK_SECONDS, 9 * (marked - begun))  # a tenth of the time at most
        finally:
            self._mark()

    def _write(self, positions: IntArray, stamps: Any, batch: Mapping[str, NDArray[Any]]) -> None:
        gaps = np.flatnonzero(np.diff(positions) != 1) + 1  # adjacent rows are written at once
        for name, (shape, kind) in self.arrays.items():
            rows, begin = np.ascontiguousarray(batch[name]), len(_header(shape, kind))
            assert (rows.dtype, rows.shape) == (kind, (len(positions), *shape[1:])), name
            with _writing(), (self.folder / f"{name}.npy").open("r+b") as file:
                for run in np.split(np.arange(len(rows)), gaps):
                    file.seek(begin + int(positions[run[0]]) * rows[0].nbytes)
                    file.write(rows[run[0] : run[-1] + 1].data)
        self.records["stamp"][positions] = stamps
        self.records["crc32"][positions] = self._crc32(batch, range(len(positions)))
        self.records["ready"][positions] = 1

    def _mark(self) -> None:
        """Record on the disk which rows are ready, after their bytes are there."""
        with _writing():
            for name in self.arrays:
                with (self.folder / f"{name}.npy").open("r+b") as file:
                    os.fsync(file.fileno())
            with (self.folder / _ROWS).open("r+b") as file:
                file.seek(len(_header(self.records.shape, self.records.dtype)))
                file.write(self.records.tobytes())

    def _crc32(self, batch: Mapping[str, NDArray[Any]], places: Iterable[int]) -> NDArray[Any]:
        """Checksums (B, A) of the rows at these places."""
        arrays = [batch[name] for name in self.arrays]
        crc32 = [[zlib.crc32(array[place]) for array in arrays] for place in places]
        return np.array(crc32, dtype=np.uint32)

    def _mapped(self) -> dict[str, NDArray[Any]]:
        return {
            name: map_array(self.folder / f"{name}.npy", shape=shape, kind=kind)
            for name, (shape, kind) in self.arrays.items()
        }

    def _require_room(self, rows: int) -> None:
        needed, unused = 0, 0
        for name, (shape, kind) in self.arrays.items():
            stat = (self.folder / f"{name}.npy").stat()
            needed += rows * math.prod(shape[1:]) * np.dtype(kind).itemsize
            unused += stat.st_size - 512 * stat.st_blocks  # 0 if no file is sparse
        needed, free = min(needed, unused), shutil.disk_usage(self.folder).free
        if free < needed:
            raise UnwritableError(
                f"The cache {self.folder} needs {needed >> 20} MiB, but {free >> 20} MiB are free "
                "there. Make room, or set data.cache to a folder on another disk."
            )


@contextmanager
def alone(folder: Path, *, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """One process at a time for a cache, if the file system has locks; makes its parent.

    `waiting` is called if another process has to end first.
    """
    with _writing():
        folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f".{folder.name}.lock"), waiting=waiting):
        yield


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which replaces `folder` at the end of the block.

    Call it under the lock of `folder`. After an error, `folder` is unchanged.
    """
    staging = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed
    staging.mkdir()
    try:
        yield staging
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def map_array(path: Path, *, shape: tuple[int, ...], kind: Any) -> NDArray[Any]:
    """The array of an .npy file, mapped into memory.

    Its header is compared and not parsed: a damaged one can raise anything.

    Raises:
        OSError: there is no such file.
        ValueError: it is cut short, or damaged, or holds another array.
    """
    header = _header(shape, kind)
    size = len(header) + math.prod(shape) * np.dtype(kind).itemsize
    _require_file(path)
    with path.open("rb") as file:
        begin, found = file.read(len(header)), os.fstat(file.fileno()).st_size
    if found != size:
        raise ValueError(f"{path.name} has {found:,} bytes, expected {size:,}")
    if begin != header:
        raise ValueError(f"{path.name} does not begin as an array {shape} of {np.dtype(kind)}")
    # As a plain array: each row of a `memmap` is another `memmap`, which is slow to make.
    return np.asarray(np.memmap(path, kind, mode="r", offset=len(header), shape=shape))


def _require_file(path: Path) -> None:
    if not path.is_file() and path.exists():
        raise ValueError(f"{path.name} is no file")  # reading a pipe could block for ever


def _header(shape: tuple[int, ...], kind: Any) -> bytes:
    """The header of an .npy file whose numbers follow in C order."""
    file, descr = io.BytesIO(), np.lib.format.dtype_to_descr(np.dtype(kind))
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def _checksum(about: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(about, sort_keys=True).encode())


@contextmanager
def _writing() -> Iterator[None]:
    """Raise errors of the disk as `UnwritableError`, unlike those of the data."""
    try:
        yield
    except OSError as error:
        raise UnwritableError(error.errno, error.strerror, error.filename) from error
