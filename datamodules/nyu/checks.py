"""Find and check the arrays of HDF5 files from elsewhere; every error names its file.

Shapes: B frames, H height, W width
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from datamodules.recipe import UnreadableImageError

__all__ = ["FAR_M", "check_depth", "find_array", "open_hdf5", "read_into"]

FAR_M = 20.0  # no room is this deep: a larger median is another unit
_EVERY = 8  # the median is taken over every 8th row and column
_CHUNK_CACHE_BYTES = 32 << 20  # a chunk may span several frames; HDF5's own 1 MiB holds none


def open_hdf5(path: Path) -> Any:
    """The HDF5 file, open for reading; never locked, so that it can be on a read-only disk.

    Raises:
        UnreadableImageError: it is missing, not HDF5, or truncated.
    """
    try:
        return h5py.File(path, "r", locking=False, rdcc_nbytes=_CHUNK_CACHE_BYTES)
    except FileNotFoundError:
        raise UnreadableImageError(
            f"{path} is missing, but it was there when the data was listed. Put it back, or run "
            "again."
        ) from None
    except OSError as error:
        raise UnreadableImageError(
            f"Cannot open {path} as HDF5 ({_reason(error)}). Expected a complete HDF5 file (MATLAB "
            "v7.3 writes one too): it is truncated or of another kind. Get it again."
        ) from error


def find_array(file: Any, key: str, *, path: Path, dtype: str, layout: str, ndim: int) -> Any:
    """The array `key` of an open file, stored in that file, with this type and number of axes.

    `layout` is the expected axes in words, for messages.

    Raises:
        UnreadableImageError: no such array, a link or storage outside the file, another type, or
            another number of axes.
    """
    link = file.get(key, getlink=True)
    if link is None:
        names = sorted(name for name in file if not name.startswith("#"))
        close = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}? Rename it to {key!r}." if close else ""
        if (
            key == "rawDepths" and "depths" in names
        ):  # renaming would pass filled-in depth off as raw
            hint = " Use data.depth: depths, or the official file, which has both."
        raise UnreadableImageError(
            f"{path} has no array {key!r}; it holds {', '.join(map(repr, names[:12])) or 'nothing'}"
            f". Expected {key!r}, {dtype} {layout}.{hint}"
        )
    if not isinstance(link, h5py.HardLink):
        target = getattr(link, "filename", "") or getattr(link, "path", "")
        raise UnreadableImageError(
            f"{path}: {key!r} is a link to {target!r}, expected the array itself. Links are not "
            "followed, because they can lead out of the file: copy the array into it."
        )
    try:
        array = file[key]
    except (KeyError, OSError, RuntimeError) as error:
        raise _damaged(path, f"{key!r}", error) from error
    if not isinstance(array, h5py.Dataset):
        raise UnreadableImageError(
            f"{path}: {key!r} is a {type(array).__name__.lower()}, expected an array, {dtype} "
            f"{layout}. Use the file in its official format."
        )
    if array.is_virtual or array.external:
        raise UnreadableImageError(
            f"{path}: the values of {key!r} lie in other files, expected in this one. Such "
            "references are not followed: copy the array into the file."
        )
    if array.dtype != np.dtype(dtype):
        unit = (
            " Whole numbers are often millimetres: divide by 1000 and store float32 metres."
            if dtype == "float32" and array.dtype.kind in "iu"
            else f" Convert the array to {dtype}."
        )
        raise UnreadableImageError(
            f"{path}: {key!r} is {array.dtype} {array.shape}, expected {dtype} {layout}.{unit}"
        )
    if array.ndim != ndim:
        raise UnreadableImageError(
            f"{path}: {key!r} has the shape {array.shape}, expected {layout}. Bring the axes into "
            "this order."
        )
    return array


def read_into(array: Any, target: NDArray[Any], *, where: Any, path: Path, name: str) -> None:
    """Read `array[where]` into `target`, which has its shape.

    Raises:
        UnreadableImageError: the file is damaged there, or its compression is unknown.
    """
    try:
        array.read_direct(target, where)
    except (OSError, RuntimeError, ValueError) as error:
        raise _damaged(path, name, error) from error


def check_depth(depth_HW: NDArray[np.float32], *, path: Path, frame: str, key: str) -> None:
    """Refuse depth that cannot be metres with 0 for missing.

    One pass for the smallest and the largest value, and a median over one pixel in 64.

    `frame` is the frame in words, such as "frame 3"; empty if the file is one frame.

    Raises:
        UnreadableImageError: NaN, infinite or negative values, no measured pixel, or a median
            above 20 (millimetres read as metres).
    """
    low, high = depth_HW.min(), depth_HW.max()
    where = f"{path}, {frame}" if frame else f"{path}"
    if not (low >= 0 and np.isfinite(high)):  # NaN fails every comparison
        bad = ~(np.isfinite(depth_HW) & (depth_HW >= 0))
        row, column = (int(i) for i in np.argwhere(bad)[0])
        raise UnreadableImageError(
            f"{where}: {key!r} is {depth_HW[row, column]} at row {row}, column {column} "
            f"({int(bad.sum())} such pixels), expected metres, with 0 where nothing was measured. "
            "Set these pixels to 0, or get the file again."
        )
    if high == 0:
        raise UnreadableImageError(
            f"{where}: {key!r} is 0 everywhere, so no pixel was measured; expected metres in some. "
            "Remove the frame, or get the file again."
        )
    if high > FAR_M:
        some = depth_HW[::_EVERY, ::_EVERY]
        some = some[some > 0]
        median = float(np.median(some if len(some) else depth_HW[depth_HW > 0]))
        if median > FAR_M:
            raise UnreadableImageError(
                f"{where}: the median of {key!r} is {median:.4g}, expected metres (a room: below "
                f"{FAR_M:g}). It looks like millimetres: divide the depth by 1000 and store it as "
                "float32."
            )


def _damaged(path: Path, name: str, error: Exception) -> UnreadableImageError:
    return UnreadableImageError(
        f"Cannot read {name} of {path} ({_reason(error)}). Expected a complete file with gzip or "
        "no compression: it is truncated or damaged there. Get it again."
    )


def _reason(error: Exception) -> str:
    """HDF5's reason in one line, without the words that it puts around it."""
    text = str(error.args[0] if error.args else error).splitlines()[0]
    inner = text[text.find("(") + 1 : text.rfind(")")] if "(" in text and ")" in text else text
    return inner.strip() or type(error).__name__
