"""A table of numbers on the disk, a row an image: filled once, by one process, then read by many.

A folder holds `rows.npy` (mapped into memory) and `about.json`, which says what the rows are made
of and has a CRC-32 of each block. The folder appears when it is whole: until then it has `.filling`
behind its name, and there `done.txt` says which blocks are written, so that a filling that was
killed goes on where it stopped. All columns of an image lie in one row: a batch is then read by one
call, and an image from one place of the disk.

Shapes: n rows, W numbers a row, B rows of a block or batch
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from datamodules.locks import acquired, lock_at
from kora.runs.durable import DamagedFileError, read_checked, write_atomically

__all__ = [
    "KINDS",
    "Column",
    "Layout",
    "Table",
    "UnwritableError",
    "alone",
    "fill",
    "open_table",
    "rows_done",
]

_FORMAT = 1
_ROWS, _ABOUT, _DONE = "rows.npy", "about.json", "done.txt"


class UnwritableError(OSError):
    """A table cannot be written."""


class Table:
    """A whole table; mapped by the first read of each process.

    Args:
        folder: Of the table.
        layout: What it holds.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder = folder
        self.layout = layout
        self._array: NDArray[Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}  # a pickled map would hold all of its bytes

    def read(self, rows: Sequence[int]) -> Tensor:
        """These rows (B, W), in any order."""
        if self._array is None:
            self._array = np.load(self.folder / _ROWS, mmap_mode="r", allow_pickle=False)
        part = torch.from_numpy(self._array.take(rows, axis=0))
        return part.view(torch.bfloat16) if self.layout.kind == "bfloat16" else part


def open_table(folder: Path, of: Mapping[str, Any]) -> Table | None:
    """The table in a folder, every block compared with its checksum; None where there is none.

    Args:
        folder: Of the table.
        of: What it must have been made from, in plain types.

    Raises:
        DamagedFileError: It is not what was written, or made from something else.
    """
    if not folder.is_dir():
        return None
    try:
        about = json.loads(read_checked(folder / _ABOUT))
        layout = Layout.from_dict(about["layout"])
        if about["format"] != _FORMAT or about["of"] != json.loads(json.dumps(of)):
            raise DamagedFileError(f"{folder / _ABOUT} is of something else")
        blocks = about["blocks"]
        whole = _whole(folder / _ROWS, blocks, layout)
        size = (folder / _ROWS).stat().st_size
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(f"{folder} cannot be read: {error}") from error
    end = len(_header(layout)) + layout.rows * layout.row_bytes
    if whole != blocks or size != end:
        first = whole[-1][0] if whole else 0
        raise DamagedFileError(f"{folder / _ROWS} is damaged from row {first} on")
    return Table(folder, layout)


def fill(
    folder: Path,
    of: Mapping[str, Any],
    layout: Layout,
    blocks: Callable[[int], Iterator[NDArray[Any]]],
) -> Table:
    """Fill a table, or go on with one that was not filled to its end.

    Args:
        folder: Where the table will be.
        of: What it is made from, in plain types.
        layout: What it will hold.
        blocks: The rows (B, W) from a given one on, in order.

    Raises:
        UnwritableError: There is no room, or no permission; what was written is removed.
    """
    staging = _staging(folder)
    start = {"format": _FORMAT, "of": json.loads(json.dumps(of)), "layout": layout.to_dict()}
    done = _begun(staging, start, layout)
    with _giving_back(staging):
        if not done:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            write_atomically(staging / _ABOUT, lambda path: path.write_text(json.dumps(start)))
            (staging / _ROWS).write_bytes(_header(layout))
    _append(staging, layout, done, blocks)
    text = json.dumps({**start, "blocks": done})
    with _giving_back(staging):
        write_atomically(staging / _ABOUT, lambda path: path.write_text(text), checksum=True)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(staging, folder)
    (folder / _DONE).unlink(missing_ok=True)
    return Table(folder, layout)


def rows_done(folder: Path) -> int:
    """Rows of a table that a process began to fill and did not finish; they are not checked."""
    return max((end for end, _ in _said_done(_staging(folder))), default=0)


@contextmanager
def alone(folder: Path, *, say: Callable[[str], None]) -> Iterator[None]:
    """Wait until no other process fills this table, and keep others waiting meanwhile.

    Args:
        folder: Of the table.
        say: Is told, once, why this waits.

    Raises:
        UnwritableError: Its folder cannot be made.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnwritableError(
            f"{folder.parent} cannot be made: {error.strerror}. Set model.feature_cache_folder to "
            "a folder that can be written to."
        ) from error
    lock = lock_at(folder.with_name(f".{folder.name}.lock"))
    if not acquired(lock, timeout_s=0):
        say("waiting for another process that fills the same feature cache.")
        acquired(lock, timeout_s=-1)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _giving_back(staging: Path) -> Iterator[None]:
    """Where it cannot be written, leave nothing: half a table would keep a full disk full."""
    try:
        yield
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise UnwritableError(error.strerror or str(error)) from error


def _append(
    staging: Path,
    layout: Layout,
    done: list[list[int]],
    blocks: Callable[[int], Iterator[NDArray[Any]]],
) -> None:
    """Write what is missing; `done` grows with every block."""
    first = done[-1][0] if done else 0
    with (
        (staging / _ROWS).open("r+b") as file,
        (staging / _DONE).open("w") as record,
        tqdm(
            total=layout.rows, initial=first, desc="Feature cache", unit="image", disable=None
        ) as bar,
    ):
        record.writelines(f"{end} {crc}\n" for end, crc in done)
        file.truncate(len(_header(layout)) + first * layout.row_bytes)
        file.seek(0, os.SEEK_END)
        for rows_BW in blocks(first):
            content = np.ascontiguousarray(rows_BW).data.cast("B")
            first += len(rows_BW)
            done.append([first, zlib.crc32(content)])
            with _giving_back(staging):
                file.write(content)  # as a file: a full disk would kill whoever writes to a map
                file.flush()  # before the record says so
                record.write(f"{first} {done[-1][1]}\n")
                record.flush()
            bar.update(len(rows_BW))
        assert first == layout.rows, f"{first} rows came, {layout.rows} were expected"
        with _giving_back(staging):
            os.fsync(file.fileno())  # the folder must not be moved before its bytes are there


def _begun(staging: Path, start: Mapping[str, Any], layout: Layout) -> list[list[int]]:
    """Blocks of an earlier, killed filling of the same table that are really there."""
    try:
        about = json.loads((staging / _ABOUT).read_text())
        if start.items() <= about.items():
            return _whole(staging / _ROWS, _said_done(staging), layout)
    except (OSError, ValueError, AttributeError):
        pass
    return []


def _whole(path: Path, said: Sequence[list[int]], layout: Layout) -> list[list[int]]:
    """The first of these blocks, up to one that is not what its checksum says."""
    found: list[list[int]] = []
    first = 0
    shown = tqdm(said, desc=f"Checking {path.parent.name[:12]}", delay=2, disable=None)
    with path.open("rb") as file:
        if file.read(len(_header(layout))) != _header(layout):
            return []
        for end, crc in shown:
            content = file.read((end - first) * layout.row_bytes)
            if end <= first or zlib.crc32(content) != crc:
                break
            found.append([end, crc])
            first = end
    return found


def _said_done(staging: Path) -> list[list[int]]:
    try:
        lines = (staging / _DONE).read_text().splitlines()
        return [[int(word) for word in line.split()] for line in lines if len(line.split()) == 2]
    except (OSError, ValueError):
        return []


def _header(layout: Layout) -> bytes:
    file = io.BytesIO()
    shape = (layout.rows, layout.width)
    header = {"descr": KINDS[layout.kind], "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def _staging(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.filling")


#: NumPy has no bfloat16, so its bits lie there as whole numbers.
KINDS = {"float32": "<f4", "float16": "<f2", "bfloat16": "<i2"}


@dataclass(frozen=True)
class Column:
    """A tensor of each image: its name, its shape, and its type before it was kept."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def width(self) -> int:
        """Its numbers."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """What a table holds: n rows of these columns, each number as `kind`."""

    rows: int
    columns: tuple[Column, ...]
    kind: str

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], *, rows: int, kind: str) -> Layout:
        """The layout for tensors (B, ...)."""
        columns = (
            Column(name, tuple(tensor.shape[1:]), str(tensor.dtype).removeprefix("torch."))
            for name, tensor in tensors.items()
        )
        return cls(rows, tuple(columns), kind)

    @property
    def width(self) -> int:
        """W."""
        return sum(self._widths())

    @property
    def row_bytes(self) -> int:
        """Bytes of an image."""
        return self.width * np.dtype(KINDS[self.kind]).itemsize

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as JSON has them."""
        columns = [[column.name, list(column.shape), column.dtype] for column in self.columns]
        return {"rows": self.rows, "columns": columns, "kind": self.kind}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Layout:
        """The inverse of `to_dict`."""
        columns = (Column(name, tuple(shape), dtype) for name, shape, dtype in record["columns"])
        return cls(record["rows"], tuple(columns), record["kind"])

    def pack(self, tensors: Mapping[str, Tensor]) -> NDArray[Any]:
        """Rows (B, W) of tensors (B, ...).

        Raises:
            ValueError: A number is too large for this kind.
        """
        size = len(next(iter(tensors.values())))
        parts = [tensors[c.name].reshape(size, c.width).float() for c in self.columns]
        rows_BW = torch.cat(parts, dim=1).to(getattr(torch, self.kind)).cpu()
        if not torch.isfinite(rows_BW).all() and all(torch.isfinite(part).all() for part in parts):
            raise ValueError(
                f"the numbers are too large for {self.kind}. Use feature_cache_dtype: bfloat16 or "
                "float32"
            )
        bits = rows_BW.view(torch.int16) if self.kind == "bfloat16" else rows_BW
        array: NDArray[Any] = bits.numpy()
        return array

    def unpack(self, rows_BW: Tensor) -> dict[str, Tensor]:
        """Tensors (B, ...) of rows, in the types that they had before."""
        wide = {column.dtype: rows_BW.to(getattr(torch, column.dtype)) for column in self.columns}
        parts = {kind: rows.split_with_sizes(self._widths(), dim=1) for kind, rows in wide.items()}
        return {
            column.name: parts[column.dtype][place].view(len(rows_BW), *column.shape)
            for place, column in enumerate(self.columns)
        }

    def _widths(self) -> list[int]:
        return [column.width for column in self.columns]
