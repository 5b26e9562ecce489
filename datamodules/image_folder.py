"""Your own images in class folders.

Shapes: N images of a part, H height, W width
"""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import ImageDataModule, Part, Split, part_of
from datamodules.cache.images import ImageFiles
from datamodules.cache.option import cache_parent, cached_or_files
from datamodules.download import expand_path, obtain_folder
from datamodules.loading import (
    folders_in,
    image_suffixes,
    is_text,
    sides,
    unreadable,
    visible_files,
)
from datamodules.recipe import FixedFit, ImageRecipe
from datamodules.splits import IntArray

__all__ = ["ImageFolder"]

OnBadImage = Literal["error", "skip"]


class ImageFolder(ImageDataModule):
    """Images in `root/<train_dir>/<class>/` and `root/<test_dir>/<class>/`, at any depth there.

    Classes are the folders of the training part, in sorted order. Images are read by
    `recipe` (upright, RGB, one size) in the workers, as they are needed, or once with `cache`.

    Args:
        root: folder that holds the two parts.
        image_size: pixels (height, width) of a batch's images, or one number for a square; None:
            the size of the backbone, which a command fills in.
        archive: a local archive to extract to `root` if that folder is missing or empty.
        train_dir: folder of the training part, in `root`.
        test_dir: folder of the test part, in `root`.
        resize: `crop` keeps the proportions and cuts the centre, `stretch` keeps the whole image.
        on_bad_image: `error` stops at a file that cannot be decoded, and names it; `skip` decodes
            all of them once at the start, leaves those out, and counts them in the record.
        cache: whether decoded and resized images are kept in a file that later epochs and runs map
            into memory: true (next to `root`; 147 KiB an image at 224 x 224), false, or a folder
            for it; None: false, as the free room is unknown. Use `num_workers: 0` with it.
        num_workers: worker processes, which read and resize.
        **options: the options of every data module, see `ImageDataModule`.

    Raises:
        ValueError: an option is out of range.
    """

    dataset_name: ClassVar[str] = "ImageFolder"

    def __init__(
        self,
        root: str,
        *,
        image_size: int | tuple[int, int] | None = None,
        archive: str | None = None,
        train_dir: str = "train",
        test_dir: str = "test",
        resize: FixedFit = "crop",
        on_bad_image: OnBadImage = "error",
        cache: bool | str | None = None,
        num_workers: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(num_workers=num_workers, **options)
        if resize not in get_args(FixedFit):
            raise ValueError(f"data.resize is {resize!r}; use crop or stretch.")
        if on_bad_image not in get_args(OnBadImage):
            raise ValueError(f"data.on_bad_image is {on_bad_image!r}; use error or skip.")
        if os.path.normpath(train_dir) == os.path.normpath(test_dir):
            raise ValueError(
                f"data.train_dir and data.test_dir are both {train_dir!r}: the test would use the "
                "training images. Put the test images into a folder of their own."
            )
        self.image_size = sides(image_size)
        self.resize: FixedFit = resize
        self.on_bad_image: OnBadImage = on_bad_image
        self.bad_images: dict[Part, list[str]] = {"train": [], "test": []}  # below `root`
        self.root = expand_path(root, key="data.root")
        self.archive = None if archive is None else expand_path(archive, key="data.archive")
        self.cache = cache_parent(cache, beside=self.root, default=False)
        self.part_dirs: dict[Part, str] = {"train": train_dir, "test": test_dir}
        self._paths: dict[Part, list[Path]] = {}
        self._classes: list[str] | None = None

    @property
    def recipe(self) -> ImageRecipe:
        """The recipe by which every image is read, whatever its size."""
        return ImageRecipe(self.resize, self.image_size)

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """Number of class folders; extracts the archive if that has not happened yet."""
        return len(self.class_names)

    @property
    def class_names(self) -> list[str]:  # type: ignore[override]
        """Names of the class folders of the training part."""
        if self._classes is None:
            self.prepare_data()
            self._classes = self._class_folders("train")
        return self._classes

    def prepare_data(self) -> None:
        """Extract the archive, unless `root` exists."""
        obtain_folder(self.root, archive=self.archive)

    def read_labels(self, part: Part) -> IntArray:
        classes = self._class_folders(part)
        if classes != self.class_names:
            only_train = sorted(set(self.class_names) - set(classes))
            only_test = sorted(set(classes) - set(self.class_names))
            raise ValueError(
                f"The classes of {self._folder('train')} and {self._folder('test')} differ: "
                f"{_named(only_train)} only in the first, {_named(only_test)} only in the second. "
                "Both need the same class folders."
            )
        number = {name: label for label, name in enumerate(classes)}
        depth = len(self._folder(part).parts)
        paths = self._part_paths(part)
        labels = np.array([number[path.parts[depth]] for path in paths], dtype=np.int64)
        if self.on_bad_image == "skip":
            labels[self._bad(part)] = -1
        empty = np.flatnonzero(np.bincount(labels[labels >= 0], minlength=len(classes)) == 0)
        if len(empty):
            raise ValueError(
                f"Class folder {self._folder(part) / classes[int(empty[0])]} holds no images"
                f"{' that can be decoded' if self.bad_images[part] else ''}. Put images there, or "
                "remove the class from both parts."
            )
        return labels

    def _bad(self, part: Part) -> list[int]:
        """Positions of the images of a part that cannot be decoded; warns of them."""
        paths = self._part_paths(part)
        what = f"{self._folder(part)}"
        found = unreadable(paths, self.recipe, what=what)
        self.bad_images[part] = [paths[at].relative_to(self.root).as_posix() for at in found]
        if found:
            warnings.warn(
                f"data.on_bad_image: skip leaves out {len(found)} of {len(paths)} images of "
                f"{what}; the first: {next(iter(found.values()))}",
                stacklevel=2,
            )
        return list(found)

    def image_names(self, part: Part) -> list[str]:
        """Paths (N,) below the folder of the part."""
        return [path.relative_to(self._folder(part)).as_posix() for path in self._part_paths(part)]

    def read(self, part: Part, positions: IntArray) -> dict[str, Tensor]:
        return {"image": self._files(part).decode(positions)}

    def make_dataset(self, split: Split) -> Dataset[Any]:
        part = part_of(split)
        files, labels, indices = self._files(part), self.labels(split), self.indices(split)
        height, width = self.image_size
        name = f"{self.root.absolute().name}.{self.part_dirs[part]}".replace(os.sep, "_")
        name += f".{height}x{width}.{self.resize}.cache"
        folder = None if self.cache is None else self.cache / name
        return cached_or_files(folder, files, labels=labels, indices=indices)

    def fingerprint(self) -> str:
        """SHA-256 over the paths (below `root`) and sizes of all images."""
        digest = hashlib.sha256()
        for part in ("train", "test"):
            for path in self._part_paths(part):
                name = os.fsencode(path.relative_to(self.root))  # which may not be valid text
                digest.update(name + f" {path.stat().st_size}\n".encode())
        return digest.hexdigest()

    def protocol_extras(self) -> dict[str, Any]:
        return {
            "official_split": {
                "train": self.part_dirs["train"],
                "val": self.part_dirs["train"],
                "test": self.part_dirs["test"],
            },
            "classes": list(self.class_names),
            "image_size": list(self.image_size),
            "resize": self.resize,
            **self._skipped(),
        }

    def _skipped(self) -> dict[str, Any]:
        if self.on_bad_image == "error":
            return {}
        counts = {part: len(names) for part, names in self.bad_images.items()}
        return {
            "bad_images": counts,
            "bad_image_files": [*self.bad_images["train"], *self.bad_images["test"]],
        }

    def _files(self, part: Part) -> ImageFiles:
        return ImageFiles(
            self._part_paths(part),
            folder=self._folder(part),
            recipe=self.recipe,
            what=f"{self._folder(part)}",
        )

    def _folder(self, part: Part) -> Path:
        return self.root / self.part_dirs[part]

    def _class_folders(self, part: Part) -> list[str]:
        folder = self._folder(part)
        if not folder.is_dir():
            found = _named(sorted(path.name for path in self.root.glob("*") if path.is_dir()))
            raise FileNotFoundError(
                f"There is no folder {folder} (folders in {self.root}: {found}). ImageFolder needs "
                f"a training and a test folder: set data.{part}_dir to the one to use. If there is "
                f"none, `kora adapt {self.root}` sets pictures aside."
            )
        names = folders_in(folder)
        for name in names:
            if not is_text(name):
                raise ValueError(
                    f"Class folder {folder / ascii(name)[1:-1]} has a name that is not UTF-8. "
                    "Rename it: it is the name of the class."
                )
        if len(names) < 2:
            raise ValueError(
                f"Folder {folder} holds {len(names)} class folders; a task needs at least 2. "
                f"Expected {folder}/<class>/<image>."
            )
        return names

    def _part_paths(self, part: Part) -> list[Path]:
        """Paths (N,) of all images of a part, sorted by class, then by path."""
        if part not in self._paths:
            suffixes = image_suffixes()
            self._paths[part] = [
                path
                for class_name in self._class_folders(part)
                for path in visible_files(self._folder(part) / class_name)
                if path.suffix.lower() in suffixes
            ]
        return self._paths[part]


def _named(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(repr(name) for name in names[:5]) or "none") + more
