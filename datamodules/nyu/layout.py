"""The two layouts of NYU Depth V2, and which of them a folder has.

Shapes: N frames of an official part
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from datamodules.base import Part
from datamodules.loading import Reader
from datamodules.nyu.cache import open_cache
from datamodules.nyu.frames import FrameFolder
from datamodules.nyu.labelled import DepthKind, LabelledFile
from datamodules.nyu.splits import SPLITS_URL, read_official_split
from datamodules.recipe import UnreadableImageError
from datamodules.splits import IntArray

__all__ = [
    "LABELLED_NAME",
    "LABELLED_URL",
    "SPLITS_NAME",
    "FoldersLayout",
    "LabelledLayout",
    "find_layout",
    "labelled_in",
]

LABELLED_NAME, SPLITS_NAME = "nyu_depth_v2_labeled.mat", "splits.mat"
LABELLED_URL = f"http://horatio.cs.nyu.edu/mit/silberman/nyu_depth_v2/{LABELLED_NAME}"


@dataclass
class LabelledLayout:
    """The labelled file with the official split, and the folder for its cache."""

    path: Path
    splits: Path
    cache: Path
    depth: DepthKind

    name: ClassVar[str] = "labelled"
    official_parts: ClassVar[dict[Part, str]] = {"train": "train", "test": "test"}

    @cached_property
    def file(self) -> LabelledFile:
        """The .mat file, after a check of its names, types and shapes."""
        return LabelledFile(self.path, depth=self.depth)

    @cached_property
    def frames(self) -> dict[Part, IntArray]:
        """Frames (N,) of each official part, counted from 0."""
        if not self.splits.is_file():
            raise FileNotFoundError(
                f"NYU Depth V2: the official split {self.splits} is missing. Download {SPLITS_URL} "
                "to that place (2.6 kB), or set data.splits to where it is."
            )
        return read_official_split(self.splits, frames=self.file.frames, source=self.path)

    @cached_property
    def reader(self) -> Reader:
        """The cache if there is one that matches, else the file itself."""
        return open_cache(self.cache, self.file) or self.file

    @property
    def size(self) -> tuple[int, int]:
        return self.file.size

    def scenes(self, part: Part) -> list[str] | None:
        """Scene of each frame (N,) of a part; None if the file does not say."""
        scenes = self.file.scenes
        return None if scenes is None else [scenes[frame] for frame in self.frames[part]]

    def reader_of(self, part: Part) -> tuple[Reader, IntArray]:
        """What reads the frames of a part, and the number of each of them (N,) there."""
        return self.reader, self.frames[part]

    def fingerprint(self) -> str:
        """SHA-256 over samples of the file and over the split."""
        digest = hashlib.sha256(self.file.fingerprint().encode())
        for frames in self.frames.values():
            digest.update(np.ascontiguousarray(frames, dtype="<i8").tobytes())
        return digest.hexdigest()


@dataclass
class FoldersLayout:
    """One HDF5 file a frame, in folders of scenes below `train` and `val`."""

    root: Path

    name: ClassVar[str] = "frames"
    official_parts: ClassVar[dict[Part, str]] = {"train": "train", "test": "val"}

    @cached_property
    def folders(self) -> dict[Part, FrameFolder]:
        """The frames of each official part, which have one size."""
        made: dict[Part, FrameFolder] = {
            part: FrameFolder(self.root / name) for part, name in self.official_parts.items()
        }
        if made["train"].size != made["test"].size:
            raise UnreadableImageError(
                f"{self.root}: frames of train are {made['train'].size} pixels (H, W), those of "
                f"val {made['test'].size}; expected one size. Get the part again that was changed."
            )
        return made

    @property
    def size(self) -> tuple[int, int]:
        return self.folders["train"].size

    def scenes(self, part: Part) -> list[str] | None:
        """Scene of each frame (N,) of a part."""
        return self.folders[part].scenes

    def reader_of(self, part: Part) -> tuple[Reader, IntArray]:
        """What reads the frames of a part, and the number of each of them (N,) there."""
        folder = self.folders[part]
        return folder, np.arange(len(folder.paths))

    def fingerprint(self) -> str:
        """SHA-256 over the paths and sizes of all frames."""
        parts = "".join(self.folders[part].fingerprint() for part in self.official_parts)
        return hashlib.sha256(parts.encode()).hexdigest()


def find_layout(
    root: Path, *, depth: DepthKind, splits: Path | None, cache: Path | None
) -> LabelledLayout | FoldersLayout:
    """The layout at `root`, a folder or the labelled file itself.

    Raises:
        FileNotFoundError: neither layout is there.
        ValueError: both are, or `depth: raw` with the layout that has no raw depth.
    """
    folder, labelled = labelled_in(root)
    parts = [name for name in FoldersLayout.official_parts.values() if (root / name).is_dir()]
    if labelled.is_file():
        if parts and labelled != root:
            raise ValueError(
                f"data.root: {root} holds both {LABELLED_NAME} and the folder {parts[0]} of the "
                f"per-frame layout. Set data.root to {labelled} for the first, or to a folder of "
                "its own for the second."
            )
        return LabelledLayout(
            labelled,
            splits=splits or folder / SPLITS_NAME,
            cache=(cache or folder) / f"{labelled.stem}.{depth}.cache",
            depth=depth,
        )
    if len(parts) == 2:
        if depth == "raw":
            raise ValueError(
                f"data.depth is 'raw', but {root} holds the per-frame layout, which has one depth "
                f"only. Use depth: depths, or {LABELLED_NAME} ({LABELLED_URL})."
            )
        return FoldersLayout(root)
    raise FileNotFoundError(
        f"NYU Depth V2: {_found(root)}. Expected at data.root either {LABELLED_NAME} with "
        f"{SPLITS_NAME} ({LABELLED_URL} and {SPLITS_URL}), or the folders train and val with "
        "<scene>/<n>.h5 in them. Put one of them there, or run `kora data prepare --config ...` "
        "with an empty folder to download the first (2.8 GB)."
    )


def labelled_in(root: Path) -> tuple[Path, Path]:
    """The data folder, and the place of the labelled file: in `root`, or `root` itself."""
    return (root.parent, root) if root.suffix == ".mat" else (root, root / LABELLED_NAME)


def _found(root: Path) -> str:
    if root.is_file():
        return f"{root} is a file of another kind"
    if not root.is_dir():
        return f"there is no {'file' if root.suffix == '.mat' else 'folder'} {root}"
    names = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{root} holds {', '.join(map(repr, names[:8])) or 'nothing'}{more}"
