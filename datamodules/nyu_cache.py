"""A compact copy of the labelled file that is mapped into memory: images upright, depth in 16 bits.

The file itself is compressed and turned on its side, which costs several times more than reading.
Each frame has a CRC-32, which each process compares when it reads the frame for the first time: to
check the whole cache when it is opened would mean to read gigabytes before the first step.

Shapes: N frames of the file, B frames read at once, H height, W width
"""

from __future__ import annotations

import json
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from datamodules.cache_files import array_header, force, map_array, new_folder, require_room
from datamodules.locks import locked
from datamodules.nyu_labelled import LabelledFile
from datamodules.recipe import UnreadableImageError
from datamodules.splits import IntArray

__all__ = ["STEP_M", "CacheReport", "CachedFrames", "open_cache", "write_cache"]

#: 0.2 mm: 16 bits then reach 13.1 m, and the sensor's own steps are 1.5 mm at best.
STEP_M = 0.0002
_STEPS_PER_M = np.float32(5000)
_FORMAT = 2  # the first had no checksums
_BLOCK = 16  # frames converted at once
_TIMED = 256  # frames read to time the cache
_FILES = {"images": "images.npy", "depth": "depth.npy"}
_ABOUT = "cache.json"


@dataclass(frozen=True)
class CacheReport:
    """What a cache gained over the labelled file, both read by one process in batches of 16."""

    folder: str
    source_mib: float
    cache_mib: float
    source_frames_per_second: float
    cache_frames_per_second: float
    largest_rounding_mm: float

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)

    def render(self) -> str:
        """One sentence for people."""
        return (
            f"The cache {self.folder} takes {self.cache_mib:.4g} MiB beside the file's "
            f"{self.source_mib:.4g} MiB; one process reads {self.cache_frames_per_second:.0f} "
            f"frames/s instead of {self.source_frames_per_second:.0f}; depth is rounded by at "
            f"most {self.largest_rounding_mm:.2f} mm."
        )


class CachedFrames:
    """Frames of the labelled file, read from its cache; see `open_cache`.

    The arrays are mapped by the first `read` of each process.
    """

    def __init__(self, folder: Path, source: LabelledFile, *, crc32: dict[str, list[int]]) -> None:
        self.folder = folder
        self.frames = source.frames
        self.size = source.size
        self._crc32 = {name: np.array(crc32[name], dtype=np.uint32) for name in _FILES}
        for name, array in self._crc32.items():
            if array.shape != (self.frames,):
                raise ValueError(f"{array.shape} checksums of {name} for {self.frames} frames")
        self._checked = np.zeros(self.frames, dtype=bool)
        self._arrays: tuple[NDArray[np.uint8], NDArray[np.uint16]] | None = None

    def read(self, frames: IntArray) -> dict[str, Tensor]:
        """These frames, counted from 0: `image` uint8 (B, 3, H, W), `depth_m` float32 (B, H, W).

        Raises:
            UnreadableImageError: the cache is not what it was when it was made or opened.
        """
        try:
            images, depths = self._open()
        except (OSError, ValueError) as error:
            raise UnreadableImageError(
                f"The cache {self.folder} was changed while it was in use ({error}). Run again."
            ) from error
        image = torch.empty((len(frames), 3, *self.size), dtype=torch.uint8)
        depth = torch.empty((len(frames), *self.size), dtype=torch.float32)
        image_BCHW, depth_BHW = image.numpy(), depth.numpy()
        for row in np.argsort(frames, kind="stable"):
            frame = int(frames[row])
            if not self._checked[frame]:
                self._check(frame, images=images[frame], depth=depths[frame])
            image_BCHW[row] = images[frame]
            np.multiply(depths[frame], np.float32(STEP_M), out=depth_BHW[row])
        return {"image": image, "depth_m": depth}

    def is_whole(self) -> bool:
        """Read every frame: is each what was written?"""
        try:
            for frame in range(self.frames):
                self.read(np.array([frame]))
        except UnreadableImageError:
            return False
        return True

    def _check(self, frame: int, **arrays: NDArray[Any]) -> None:
        for name, array in arrays.items():
            if zlib.crc32(array.data) != self._crc32[name][frame]:
                raise UnreadableImageError(
                    f"{self.folder / _FILES[name]} is damaged: frame {frame} does not have the "
                    "checksum with which it was written. Run `kora data prepare --config ...` to "
                    "make the cache again."
                )
        self._checked[frame] = True

    @contextmanager
    def opened(self) -> Iterator[CachedFrames]:
        """Maps may be inherited by workers, so nothing is to be closed."""
        yield self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": None}  # a pickled map would hold all of its bytes

    def _open(self) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """Maps of `images` (N, 3, H, W) and `depth` (N, H, W).

        Raises:
            ValueError: a file is cut short, or holds another array.
        """
        if self._arrays is None:
            shapes = {"images": (self.frames, 3, *self.size), "depth": (self.frames, *self.size)}
            kinds = {"images": np.uint8, "depth": np.uint16}
            images, depths = (
                map_array(self.folder / file, shape=shapes[name], kind=kinds[name])
                for name, file in _FILES.items()
            )
            self._arrays = (images, depths)
        return self._arrays


def open_cache(folder: Path, source: LabelledFile) -> CachedFrames | None:
    """The cache in `folder` if there is one that was made from `source` as it is now.

    Warns:
        UserWarning: there is one, but it was made from another file, or it is damaged.
    """
    if not folder.is_dir():
        return None
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        found, wanted = about["source"], _identity(source)
        if found != wanted:
            raise ValueError(f"it was made from {found}, but the file is {wanted}")
        if about.get("checksum") not in (None, _checksum(about)):  # None: of earlier versions
            raise ValueError(f"{_ABOUT} does not have the checksum with which it was written")
        frames = CachedFrames(folder, source, crc32=about["crc32"])
        frames._open()
        _report(folder, about)
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        warnings.warn(
            f"The cache {folder} is not used, because it does not match {source.path}: {reason}. "
            "Run `kora data prepare --config ...` to make it again.",
            stacklevel=2,
        )
        return None
    return frames


def write_cache(folder: Path, source: LabelledFile) -> CacheReport:
    """Make the cache of `source` in `folder`, unless a matching one is there; says what it gained.

    Every frame is checked on the way. The folder appears when it is complete.

    Raises:
        UnreadableImageError: a frame is damaged.
        ValueError: a depth does not fit into 16 bits.
        OSError: no room on the disk.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f".{folder.name}.lock")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a stale cache is about to be replaced
            ready = open_cache(folder, source)
        if ready is None or not ready.is_whole():
            _make(folder, source)
    return _report(folder, json.loads((folder / _ABOUT).read_text(encoding="utf-8")))


def _report(folder: Path, about: dict[str, Any]) -> CacheReport:
    return CacheReport(folder=str(folder), **about["gain"])


def _checksum(about: dict[str, Any]) -> int:
    """CRC-32 of the record, without this very key."""
    text = json.dumps({key: about[key] for key in sorted(about) if key != "checksum"})
    return zlib.crc32(text.encode())


def _make(folder: Path, source: LabelledFile) -> None:
    height, width = source.size
    needed = source.frames * height * width * 5  # three bytes of colour and two of depth
    require_room(folder, needed)
    identity = _identity(source)
    with new_folder(folder) as staging:
        seconds, largest_m, crc32 = _convert(source, staging)
        cached = CachedFrames(staging, source, crc32=crc32)
        bytes_written = sum((staging / name).stat().st_size for name in _FILES.values())
        gain = {
            "source_mib": source.path.stat().st_size / 2**20,
            "cache_mib": bytes_written / 2**20,
            "source_frames_per_second": source.frames / seconds,
            "cache_frames_per_second": _frames_per_second(cached),
            "largest_rounding_mm": 1000 * largest_m,
        }
        about = {"source": identity, "step_m": STEP_M, "gain": gain, "crc32": crc32}
        about["checksum"] = _checksum(about)
        (staging / _ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _convert(source: LabelledFile, folder: Path) -> tuple[float, float, dict[str, list[int]]]:
    """Write both arrays; returns seconds of reading, largest rounding in metres, and checksums."""
    seconds, largest_m = 0.0, 0.0
    crc32: dict[str, list[int]] = {name: [] for name in _FILES}
    with (
        source.opened(),
        (folder / _FILES["images"]).open("wb") as images,
        (folder / _FILES["depth"]).open("wb") as depths,
        tqdm(total=source.frames, desc="Caching NYU Depth V2", unit="frame", disable=None) as bar,
    ):
        images.write(array_header((source.frames, 3, *source.size), np.uint8))
        depths.write(array_header((source.frames, *source.size), "<u2"))
        for start in range(0, source.frames, _BLOCK):
            block = np.arange(start, min(start + _BLOCK, source.frames))
            begun = time.perf_counter()
            read = source.read(block)
            seconds += time.perf_counter() - begun
            depth = read["depth_m"].numpy()
            steps = _rounded(depth, first=start, source=source)
            largest_m = max(largest_m, float(np.abs(steps * np.float32(STEP_M) - depth).max()))
            for name, file, array in (
                ("images", images, read["image"].numpy()),
                ("depth", depths, steps),
            ):
                file.write(array.tobytes())
                crc32[name] += [zlib.crc32(frame) for frame in array]
            bar.update(len(block))
        for file in (images, depths):
            force(file)  # the folder must not be moved before its bytes are there
    return max(seconds, 1e-9), largest_m, crc32


def _rounded(depth_BHW: NDArray[np.float32], *, first: int, source: LabelledFile) -> Any:
    """Depth in steps of 0.2 mm, little-endian uint16; 0 only where nothing was measured."""
    steps = np.rint(depth_BHW * _STEPS_PER_M)
    if steps.max() > np.iinfo(np.uint16).max:
        row = int(steps.reshape(len(steps), -1).max(1).argmax())
        raise ValueError(
            f"{source.path}, frame {first + row}: {source.key!r} reaches {depth_BHW.max():.4g} m, "
            f"but a cache holds at most {np.iinfo(np.uint16).max * STEP_M:.1f} m. Use the file "
            "without a cache (it is read as it is), or correct the depth."
        )
    steps[(depth_BHW > 0) & (steps == 0)] = 1
    return steps.astype("<u2")


def _frames_per_second(frames: CachedFrames) -> float:
    chosen = np.random.default_rng(0).permutation(frames.frames)[:_TIMED]
    begun = time.perf_counter()
    for start in range(0, len(chosen), _BLOCK):
        frames.read(chosen[start : start + _BLOCK])
    return len(chosen) / max(time.perf_counter() - begun, 1e-9)


def _identity(source: LabelledFile) -> dict[str, Any]:
    """What a cache must have been made from."""
    stat = source.path.stat()
    return {
        "bytes": stat.st_size,
        "modified_ns": stat.st_mtime_ns,
        "depth": source.depth,
        "format": _FORMAT,
    }
