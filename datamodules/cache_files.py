"""What the caches share: folders that appear whole, arrays that are mapped, and the room for them.

Arrays are written as files and not as maps: a full disk is then an error that can be told, and not
a crash.
"""

from __future__ import annotations

import io
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

__all__ = ["array_header", "force", "map_array", "new_folder", "require_room"]


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `folder` at the end of the block.

    Call it under the lock of `folder`. After an error `folder` is what it was.
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


def require_room(folder: Path, needed: int) -> None:
    """See that so many bytes are free where `folder` is, or will be.

    Raises:
        OSError: they are not.
    """
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise OSError(
            f"The cache {folder} needs {needed >> 20} MiB, but {free >> 20} MiB are free there. "
            "Make room, or set data.cache to a folder on another disk."
        )


def array_header(shape: tuple[int, ...], kind: Any) -> bytes:
    """How an .npy file begins, whose numbers follow in C order."""
    file = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(kind))
    np.lib.format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def force(file: BinaryIO) -> None:
    """Bring to the disk what was written, before anything relies on it."""
    file.flush()
    os.fsync(file.fileno())


def map_array(path: Path, *, shape: tuple[int, ...], kind: Any) -> NDArray[Any]:
    """The array of an .npy file, mapped into memory.

    Its header is compared and not parsed: a damaged one can raise anything.

    Raises:
        OSError: there is no such file.
        ValueError: it is cut short, or damaged, or holds another array.
    """
    header = array_header(shape, kind)
    size = len(header) + math.prod(shape) * np.dtype(kind).itemsize
    if not path.is_file() and path.exists():
        raise ValueError(f"{path.name} is no file")  # a pipe: reading it would wait for ever
    with path.open("rb") as file:
        begin, found = file.read(len(header)), os.fstat(file.fileno()).st_size
    if found != size:
        raise ValueError(f"{path.name} has {found:,} bytes, expected {size:,}")
    if begin != header:
        raise ValueError(f"{path.name} does not begin as an array {shape} of {np.dtype(kind)}")
    return np.memmap(path, kind, mode="r", offset=len(header), shape=shape)
