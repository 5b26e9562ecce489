"""Tiny ImageNet from its official zip: 200 classes, 64 x 64 pixels.

Source: Stanford CS231n, http://cs231n.stanford.edu/tiny-imagenet-200.zip

Shapes: N images of a part
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import ImageDataModule, Part, Split, part_of
from datamodules.cache.images import ImageFiles
from datamodules.cache.option import cache_parent, cached_images
from datamodules.download import expand_path, obtain_folder
from datamodules.recipe import ImageRecipe
from datamodules.splits import IntArray

__all__ = ["TinyImageNet"]

_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
_FOLDER = "tiny-imagenet-200"
_NUM_CLASSES = 200

ValLayout = Literal["annotations", "folders"]


class TinyImageNet(ImageDataModule):
    """Tiny ImageNet: 500 training images a class; the official validation set is the test set.

    The official order of a part is the sorted order of its paths. `index` counts all images of the
    part, also those of classes that are not used.

    Args:
        root: folder that holds, or will hold, `tiny-imagenet-200`.
        archive: a local archive to extract instead of downloading, with any checksum.
        classes: which classes, numbered 0, 1, ... in this order: "100:200" (places in
            `wnids.txt`, the last one not included), a list of places, or a list of wnids;
            None: all 200.
        cache: whether decoded images are kept in a file that later runs map into memory: true (next
            to the extracted folder, at most 1.3 GiB), false, or a folder for it; None: true. Only
            images that are used are decoded.
        val_layout: `annotations` reads the labels of the flat validation folder from
            `val_annotations.txt`. `folders` repeats the mistake of the published notebook, which
            took that folder for class folders: all its images become class 0, and the classes are
            numbered in the sorted order of their wnids, as class folders are.
        **options: the options of every data module, see `ImageDataModule`.

    Raises:
        ValueError: an option is out of range.
    """

    image_size = (64, 64)
    dataset_name: ClassVar[str] = "TinyImageNet"
    official_parts: ClassVar[dict[Part, str]] = {"train": "train", "test": "val"}

    def __init__(
        self,
        root: str = "data",
        *,
        archive: str | None = None,
        classes: int | str | list[int] | list[str] | None = None,
        val_layout: ValLayout = "annotations",
        cache: bool | str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if val_layout not in get_args(ValLayout):
            raise ValueError(f"data.val_layout is {val_layout!r}; use annotations or folders.")
        self.val_layout = val_layout
        self.classes_option = classes
        self.classes = _parse_classes(classes)
        self.num_classes = len(self.classes)
        self.root = expand_path(root, key="data.root")
        self.archive = None if archive is None else expand_path(archive, key="data.archive")
        self.cache = cache_parent(cache, beside=self.folder, default=True)
        self._paths: dict[Part, list[Path]] = {}

    @property
    def folder(self) -> Path:
        """The extracted folder."""
        return self.root / _FOLDER

    def prepare_data(self) -> None:
        """Download and extract, unless the extracted folder is there."""
        obtain_folder(self.folder, archive=self.archive, inside=_FOLDER, url=_URL, md5=_MD5)

    def read_labels(self, part: Part) -> IntArray:
        number = {wnid: label for label, wnid in enumerate(self._chosen_wnids())}
        if part == "test" and self.val_layout == "folders":
            return np.zeros(len(self._part_paths(part)), dtype=np.int64)
        if part == "train":
            wnids = [path.parent.parent.name for path in self._part_paths(part)]
            absent = number.keys() - set(wnids)
            if absent:
                raise FileNotFoundError(
                    f"Folder {self.folder / 'train' / min(absent) / 'images'} has no images. "
                    f"Delete {self.folder} and run `kora data prepare` again."
                )
        else:
            wnids = self._annotated_wnids()
        return np.array([number.get(wnid, -1) for wnid in wnids], dtype=np.int64)

    def read(self, part: Part, positions: IntArray) -> dict[str, Tensor]:
        return {"image": self._files(part).decode(positions)}

    def make_dataset(self, split: Split) -> Dataset[Any]:
        if self.cache is not None:
            part = part_of(split)
            dataset = cached_images(
                self.cache / f"{_FOLDER}.{self.official_parts[part]}.cache",
                self._files(part),
                labels=self.labels(split),
                indices=self.indices(split),
            )
            if dataset is not None:
                return dataset
        return super().make_dataset(split)

    def fingerprint(self) -> str:
        """SHA-256 over the names and sizes of all images, and over the annotations."""
        digest = hashlib.sha256((self.folder / "val" / "val_annotations.txt").read_bytes())
        for part in ("train", "test"):
            for path in self._part_paths(part):
                digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        return digest.hexdigest()

    def protocol_extras(self) -> dict[str, Any]:
        return {"classes": self.classes_option, "val_layout": self.val_layout}

    def _files(self, part: Part) -> ImageFiles:
        return ImageFiles(
            self._part_paths(part),
            folder=self.folder,
            recipe=ImageRecipe(size=self.image_size),
            what=f"{self.dataset_name} {self.official_parts[part]}",
        )

    def _part_paths(self, part: Part) -> list[Path]:
        """Paths (N,) of all images of a part, sorted."""
        if part not in self._paths:
            folder = self.folder / self.official_parts[part]
            if part == "train":
                folders = [path / "images" for path in _listing(folder)]
            else:
                folders = [folder / "images"]
            self._paths[part] = [path for images in folders for path in _listing(images)]
        return self._paths[part]

    def _chosen_wnids(self) -> list[str]:
        """Wnids of the chosen classes in the order of their labels; sets `class_names`."""
        path = self.folder / "wnids.txt"
        wnids = _read_text(path).split()
        twice = next((wnid for wnid in wnids if wnids.count(wnid) > 1), None)
        if twice is not None:
            raise RuntimeError(
                f"{path} lists {twice} twice, and each class has one label. Delete {self.folder} "
                "and run `kora data prepare` again."
            )
        chosen = []
        for choice in self.classes:
            if isinstance(choice, int) and choice < len(wnids):
                chosen.append(wnids[choice])
            elif choice in wnids:
                chosen.append(str(choice))
            else:
                raise ValueError(
                    f"data.classes asks for class {choice!r}, but {path} lists {len(wnids)} "
                    "classes and it is not one of them. Correct data.classes, or the archive."
                )
        if self.val_layout == "folders":
            chosen.sort()
        lines = (line.partition("\t") for line in _read_text(self.folder / "words.txt").split("\n"))
        words = {wnid: name.strip() for wnid, _, name in lines}
        names = [words.get(wnid, wnid) for wnid in chosen]
        short = [name.split(",")[0] for name in names]
        self.class_names = short if len(set(short)) == len(short) else names
        return chosen

    def _annotated_wnids(self) -> list[str]:
        """Wnid of every validation image, from `val_annotations.txt`."""
        path = self.folder / "val" / "val_annotations.txt"
        rows = [line.split("\t") for line in _read_text(path).splitlines() if line]
        wnid_of = {row[0]: row[1] for row in rows if len(row) > 1}
        names = [image.name for image in self._part_paths("test")]
        lost = sorted(set(names) ^ wnid_of.keys())
        if lost:
            raise RuntimeError(
                f"{path} and the folder {path.parent / 'images'} do not agree: {len(lost)} images "
                f"are in one of them only, among them {lost[0]}. Delete {self.folder} and run "
                "`kora data prepare` again."
            )
        return [wnid_of[name] for name in names]


def _parse_classes(
    classes: int | str | list[int] | list[str] | None,
) -> tuple[int | str, ...]:
    if classes is None:
        return tuple(range(_NUM_CLASSES))
    if isinstance(classes, int):
        # YAML 1.1 reads 10:20 as a number to base 60; only `int` in the signature lets us say so.
        raise ValueError(
            f"data.classes is the number {classes}. YAML reads a range such as 10:20 as one number "
            'unless it is in quotes: write "10:20", or a list of places.'
        )
    if isinstance(classes, str):
        ends = re.fullmatch(r"(\d+):(\d+)", classes)
        if not ends or not int(ends[1]) < int(ends[2]) <= _NUM_CLASSES:
            raise ValueError(
                f"data.classes is {classes!r}; write a range of places in wnids.txt in quotes, "
                f'such as "100:200" (start below end, at most {_NUM_CLASSES}), or a list.'
            )
        return tuple(range(int(ends[1]), int(ends[2])))
    chosen: tuple[int | str, ...] = tuple(classes)
    outside = [c for c in chosen if isinstance(c, int) and not 0 <= c < _NUM_CLASSES]
    if outside:
        raise ValueError(
            f"data.classes holds {outside[0]}; places in wnids.txt are 0..{_NUM_CLASSES - 1}."
        )
    if len(set(chosen)) != len(chosen):
        double = next(c for c in chosen if chosen.count(c) > 1)
        raise ValueError(f"data.classes holds {double!r} more than once; name each class once.")
    if len(chosen) < 2:
        raise ValueError(f"data.classes holds {len(chosen)} classes; a task needs at least 2.")
    return chosen


def _listing(folder: Path) -> list[Path]:
    """Sorted entries of a folder, without hidden files."""
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except FileNotFoundError:
        raise _missing(folder) from None
    return [folder / name for name in names]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise _missing(path) from None
    except UnicodeDecodeError as error:
        raise RuntimeError(
            f"{path} is damaged: it is not UTF-8, from byte {error.start} on. Delete "
            f"{path.parent} and run `kora data prepare` again."
        ) from error


def _missing(path: Path) -> FileNotFoundError:
    return FileNotFoundError(
        f"Tiny ImageNet: {path} is missing. Run `kora data prepare --config ...` to get the data; "
        f"if the folder {_FOLDER} is incomplete, delete it first."
    )
