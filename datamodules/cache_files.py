"""What the caches share: folders that appear whole, arrays that are mapped, and the room for them.

Arrays are written as files and not as maps: a full disk is then an error that can be told, and not
a crash.
"""

from __future__ import annotations

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


def array_header(file: BinaryIO, shape: tuple[int, ...], descr: str) -> None:
    """Begin an .npy file, whose numbers follow in C order."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": False, "shape": shape}
    )


def force(file: BinaryIO) -> None:
    """Bring to the disk what was written, before anything relies on it."""
    file.flush()
    os.fsync(file.fileno())


def map_array(path: Path, *, shape: tuple[int, ...], kind: Any) -> NDArray[Any]:
    """The array of an .npy file, mapped into memory.

    Raises:
        OSError: there is no such file.
        ValueError: it is cut short, or holds another array.
    """
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.shape != shape or array.dtype != kind:
        raise ValueError(f"{array.dtype} {array.shape}, expected {kind} {shape}")
    return array
