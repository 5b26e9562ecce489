"""What folders of images with masks or boxes have in common: parts, or one that is cut in two.

Shapes: N images of a part
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.base import ImageDataModule, Part
from datamodules.download import expand_path, obtain_folder
from datamodules.loading import sides
from datamodules.splits import IntArray, choose_train_beside

__all__ = ["_FolderInParts", "require_apart"]


class _FolderInParts(ImageDataModule):
    """A folder with parts that train, test and validate, or without: then a share of it tests.

    Args:
        root: Folder with one of the layouts.
        image_size: Pixels (height, width) to which images are brought for `resize`, or one number
            for a square; None: the size of the backbone, which a command fills in.
        archive: A local archive to extract to `root` if that folder is missing or empty.
        train_dir: Name of the training part; None: that of the layout.
        test_dir: Name of the test part; None: that of the layout.
        val_dir: Name of a part whose images validate; None: they are taken from the training part.
        test_fraction: Share of the images that test if the folder has no parts; with `groups`, in
            whole groups.
        num_workers: Worker processes, which read the files.
        **options: The options of every data module, see `ImageDataModule`.

    Raises:
        ValueError: An option is out of range.
    """

    def __init__(
        self,
        root: str,
        *,
        image_size: int | tuple[int, int] | None = None,
        archive: str | None = None,
        train_dir: str | None = None,
        test_dir: str | None = None,
        val_dir: str | None = None,
        test_fraction: float = 0.2,
        num_workers: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(num_workers=num_workers, **options)
        if not 0 < test_fraction < 1:
            raise ValueError(f"data.test_fraction is {test_fraction}; it must lie in (0, 1).")
        self.image_size = sides(image_size)
        self.root = expand_path(root, key="data.root")
        self.archive = None if archive is None else expand_path(archive, key="data.archive")
        self.val_dir = val_dir
        self.test_fraction = test_fraction
        self._given_parts = train_dir, test_dir

    def prepare_data(self) -> None:
        """Extract the archive, unless `root` exists."""
        obtain_folder(self.root, archive=self.archive)

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """K; extracts the archive if that has not happened yet."""
        return len(self.class_names)

    def read_labels(self, part: Part) -> IntArray:
        """Zeros (N,): an image has no class of its own."""
        return np.zeros(len(self.image_names(part)), dtype=np.int64)

    def with_validation(self, labels: IntArray, val: IntArray) -> tuple[IntArray, IntArray]:
        """Positions that train and that validate, if `val` are to validate."""
        seed, names = self.resolved_seed(), ["image"]
        train = choose_train_beside(labels, val, self.subset, class_names=names, seed=seed)
        self.warn_of_groups(train, val)
        return train, val


def require_apart(train: Iterable[Path], val: Iterable[Path], test: Iterable[Path]) -> None:
    """Check that no image is in two parts.

    Raises:
        ValueError: One is.
    """
    parts = {"train": set(train), "validate": set(val), "test": set(test)}
    for (does, some), (also, others) in combinations(parts.items(), 2):
        if shared := some & others:
            raise ValueError(
                f"{len(shared)} images {does} and {also}, such as {min(shared)}. Choose parts "
                "that share none (data.train_dir, data.test_dir, data.val_dir)."
            )
