"""Images that a table names: a CSV file with a path, a label and a part for each.

Shapes: N images of a part, n chosen images
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, get_args

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import ImageDataModule, Part, Split, part_of
from datamodules.cache.images import ImageFiles
from datamodules.cache.option import cache_parent, cached_or_files
from datamodules.download import expand_path
from datamodules.loading import sides
from datamodules.recipe import FixedFit, ImageRecipe
from datamodules.splits import IntArray

__all__ = ["ImageTable", "TableRow", "read_table"]

_PARTS = ("train", "val", "test")


class TableRow(NamedTuple):
    """An image of a table.

    Args:
        path: As the table has it.
        label: The name of its class.
        part: `train`, `val` or `test`; "" if the table has no parts.
        fold: Of a training image, from 0; None if it has none.
        group: What it belongs to, such as a patient or a drive; "" if to nothing.
    """

    path: str
    label: str
    part: str = ""
    fold: int | None = None
    group: str = ""


def read_table(file: Path) -> list[TableRow]:
    """The rows of a CSV file with columns `path`, `label`, and maybe `part`, `fold`, `group`.

    Further columns are ignored.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such table, or a row is not complete; the message names the line.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")  # spreadsheets write a byte order mark
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no table {file}. Name a CSV file.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8. Save it as CSV in UTF-8.") from error
    comma = ";" if ";" in text.partition("\n")[0] else ","  # as some spreadsheets write it
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=comma, strict=True)
    missing = [name for name in ("path", "label") if name not in (reader.fieldnames or ())]
    if missing:
        found = ", ".join(reader.fieldnames or ()) or "nothing"
        raise ValueError(
            f"{file} has no column '{missing[0]}' (its first line has: {found}). A table begins "
            "with the line path,label or path,label,part."
        )
    try:
        return [_row(file, reader.line_num, fields) for fields in reader]
    except csv.Error as error:
        raise ValueError(f"{file}, after line {reader.line_num}: {error}. Correct it.") from error


def _row(file: Path, line: int, fields: Mapping[str, Any]) -> TableRow:
    path, label = (fields.get("path") or "").strip(), (fields.get("label") or "").strip()
    part, fold = (fields.get("part") or "").strip(), (fields.get("fold") or "").strip()
    where = f"{file}, line {line}"
    if not path or not label:
        raise ValueError(f"{where} has no {'label' if path else 'path'}. Fill it in, or remove it.")
    if "part" in fields and part not in _PARTS:
        raise ValueError(f"{where}: part is {part!r}, expected {', '.join(_PARTS)}.")
    if fold and not fold.isdecimal():
        raise ValueError(f"{where}: fold is {fold!r}, expected a whole number, or nothing.")
    group = (fields.get("group") or "").strip()
    return TableRow(path, label, part, int(fold) if fold else None, group)


class ImageTable(ImageDataModule):
    """The images that a CSV file names, in its order.

    Its columns are `path,label,part[,fold,group]`. Rows with part `val` validate. Without any,
    those of the fold `val_fold` do, or else the share `val_fraction`, of which rows of one `group`
    (a patient, a drive) are on one side. Classes are the labels of the training rows, sorted.

    Args:
        table: the file; its paths are relative to `root`.
        image_size: as in `ImageFolder`, like `resize`, `cache` and `num_workers`.
        root: folder to which the paths are relative; None: that of the table.
        val_fold: the fold that validates; needs the column `fold`.
        **options: the options of every data module, see `ImageDataModule`.

    Raises:
        ValueError: an option is out of range, or the table is not complete.
    """

    dataset_name: ClassVar[str] = "ImageTable"

    def __init__(
        self,
        table: str,
        *,
        image_size: int | tuple[int, int] | None = None,
        root: str | None = None,
        val_fold: int | None = None,
        resize: FixedFit = "crop",
        cache: bool | str | None = None,
        num_workers: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(num_workers=num_workers, **options)
        if resize not in get_args(FixedFit):
            raise ValueError(f"data.resize is {resize!r}; use crop or stretch.")
        self.image_size = sides(image_size)
        self.resize: FixedFit = resize
        self.table = expand_path(table, key="data.table")
        self.root = self.table.parent if root is None else expand_path(root, key="data.root")
        self.val_fold = val_fold
        self.cache = cache_parent(cache, beside=self.table, default=False)

    @property
    def recipe(self) -> ImageRecipe:
        """The recipe by which every image is read, whatever its size."""
        return ImageRecipe(self.resize, self.image_size)

    @cached_property
    def rows(self) -> dict[Part, list[TableRow]]:
        """Rows of training (and validation) and of the test, in the order of the table."""
        found: dict[Part, list[TableRow]] = {"train": [], "test": []}
        known: dict[str, str] = {}
        for row in read_table(self.table):
            part = known.setdefault(os.path.normpath(row.path), row.part)
            if part != row.part:
                raise ValueError(
                    f"{self.table}: {row.path} is in the parts {part} and {row.part}. Leave it in "
                    "one of them."
                )
            if not row.part:
                raise ValueError(
                    f"{self.table} has no column 'part'. Give each row train, val or test."
                )
            found["test" if row.part == "test" else "train"].append(row)
        for part, rows in found.items():
            if not rows:
                raise ValueError(f"{self.table} has no row with part {part!r}. Add some.")
        return found

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """Number of labels of the training rows."""
        return len(self.class_names)

    @cached_property
    def class_names(self) -> list[str]:  # type: ignore[override]
        """Labels of the training rows, sorted."""
        return sorted({row.label for row in self.rows["train"]})

    @property
    def validates(self) -> bool:
        """Whether rows validate: those of part `val`, of `val_fold`, or as in every data module."""
        listed = self.val_fold is not None or any(row.part == "val" for row in self.rows["train"])
        return listed or super().validates

    def prepare_data(self) -> None:
        """Nothing to fetch; look whether the images are there.

        Raises:
            FileNotFoundError: Some are not.
        """
        paths = [row.path for rows in self.rows.values() for row in rows]
        missing = [path for path in paths if not (self.root / path).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{self.table}: {len(missing)} of {len(paths)} images are not in {self.root}, such "
                f"as {missing[0]}. Put them there, remove their rows, or name their folder in "
                "data.root."
            )

    def read_labels(self, part: Part) -> IntArray:
        number = {name: label for label, name in enumerate(self.class_names)}
        unknown = [row for row in self.rows[part] if row.label not in number]
        if unknown:
            raise ValueError(
                f"{self.table}: the label {unknown[0].label!r} of {unknown[0].path} has no "
                "training image. Add some, or remove the row."
            )
        return np.array([number[row.label] for row in self.rows[part]], dtype=np.int64)

    def choose_train_and_val(self, labels: IntArray) -> tuple[IntArray, IntArray]:
        """By the column `part`, else by `fold`, else at random as in every data module."""
        rows = self.rows["train"]
        if any(row.part == "val" for row in rows):
            validates = np.array([row.part == "val" for row in rows])
        elif self.val_fold is not None:
            validates = np.array([row.fold == self.val_fold for row in rows])
            if not validates.any() or validates.all():
                folds = sorted({row.fold for row in rows if row.fold is not None})
                raise ValueError(
                    f"data.val_fold is {self.val_fold}, and {self.table} has the folds "
                    f"{', '.join(map(str, folds)) or 'none'}. Name one of two or more."
                )
        else:
            return super().choose_train_and_val(labels)
        if self.subset is not None:
            raise ValueError(
                "data.subset draws from all training images, and here the table says which of them "
                "validate. Leave one of them out."
            )
        train, val = np.flatnonzero(~validates), np.flatnonzero(validates)
        self.warn_of_groups(train, val)
        return train, val

    def image_names(self, part: Part) -> list[str]:
        """The paths (N,) of the rows."""
        return [row.path for row in self.rows[part]]

    def group_names(self, part: Part) -> Sequence[str] | None:
        """By `groups`, or else by the column `group`; a row without one is alone."""
        if self.groups is not None or not any(row.group for row in self.rows["train"]):
            return super().group_names(part)
        return [row.group for row in self.rows[part]]

    def read(self, part: Part, positions: IntArray) -> dict[str, Tensor]:
        return {"image": self._files(part).decode(positions)}

    def make_dataset(self, split: Split) -> Dataset[Any]:
        part = part_of(split)
        files, labels, indices = self._files(part), self.labels(split), self.indices(split)
        height, width = self.image_size
        name = f"{self.table.stem}.{part}.{height}x{width}.{self.resize}.cache"
        folder = None if self.cache is None else self.cache / name
        return cached_or_files(folder, files, labels=labels, indices=indices)

    def fingerprint(self) -> str:
        """SHA-256 over the rows, and the sizes of all images."""
        digest = hashlib.sha256()
        for part in ("train", "test"):
            for row in self.rows[part]:
                size = (self.root / row.path).stat().st_size
                digest.update(os.fsencode("\t".join([row.path, row.label, row.part])))
                digest.update(f" {row.fold} {size}\n".encode())
        return digest.hexdigest()

    def protocol_extras(self) -> dict[str, Any]:
        own = any(row.part == "val" for row in self.rows["train"])
        return {
            "official_split": {"train": "train", "val": "val" if own else "train", "test": "test"},
            "classes": list(self.class_names),
            "image_size": list(self.image_size),
            "resize": self.resize,
            "val_fold": self.val_fold,
        }

    def _files(self, part: Part) -> ImageFiles:
        return ImageFiles(
            [self.root / row.path for row in self.rows[part]],
            folder=self.root,
            recipe=self.recipe,
            what=f"{self.table} ({part})",
        )
