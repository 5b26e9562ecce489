"""Find the pictures: in class folders, in parts with class folders, or by a table."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from datamodules.detection.layouts import find_layout
from datamodules.image_table import TableRow, read_table
from datamodules.loading import image_suffixes, is_text, visible_files
from kora.adaptation.call import require_place

__all__ = ["PARTS", "Layout", "find_pictures", "has_boxes", "has_masks"]

#: Names of folders, and the part that they hold.
PARTS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
#: Folders next to `images` in data sets of other tasks.
_OTHER_TASKS = {
    "labels": "detection or segmentation", "annotations": "detection",
    "boxes": "detection", "depth": "depth",
}  # fmt: skip
#: Classifiers of more classes, many of them at once, would not fit into a laptop's memory.
MOST_CLASSES = 5000


class Layout(NamedTuple):
    """The pictures of a folder or table.

    Args:
        place: The folder or table.
        root: Folder to which their paths are relative.
        rows: Path, label and part of each; the part is "" if there are no parts.
        kind: The layout, for people.
        notes: What was left out or looks odd, a sentence each.
    """

    place: Path
    root: Path
    rows: list[TableRow]
    kind: str
    notes: list[str]

    @property
    def labels(self) -> list[str]:
        """The classes, sorted."""
        return sorted({row.label for row in self.rows})


def has_masks(place: Path) -> bool:
    """Whether a folder, or its training part, holds folders `images` and `masks`."""
    trains = [name for name, part in PARTS.items() if part == "train"]
    return any(
        (here / "images").is_dir() and (here / "masks").is_dir()
        for here in (place, *(place / name for name in trains))
    )


def has_boxes(place: Path) -> bool:
    """Whether a folder holds boxes of objects, as `datamodules.DetectionFolder` finds them."""
    try:
        parts = find_layout(place).parts
    except (OSError, ValueError):  # what reads the folder next says what is wrong
        return False
    # XML files among the pictures of class folders are no parts.
    return not parts or any(name.lower().startswith("train") for name in parts)


def find_pictures(place: Path) -> Layout:
    """The pictures of `FOLDER/CLASS/*`, `FOLDER/train/CLASS/*` (and `test`, `val`) or of a CSV.

    No file is opened; pictures are known by the ending of their name.

    Raises:
        FileNotFoundError: there is no such folder or file.
        PermissionError: a folder cannot be read.
        ValueError: there are no classes to tell apart; the message says what to change.
    """
    require_place(place)
    if place.is_file():
        if place.suffix.lower() != ".csv":
            raise ValueError(
                f"{place} is a file. Name a folder of pictures, or a table of them: a .csv file "
                "with the columns path and label."
            )
        layout = Layout(place, place.parent, read_table(place), "a table of paths and labels", [])
    else:
        layout = _of_folder(place)
    _check(place, layout)
    return layout


def _of_folder(folder: Path) -> Layout:
    _require_readable(folder)
    inside = _folders(folder)
    names = {path.name.lower(): path for path in inside}
    for name, task in _OTHER_TASKS.items():
        if name in names and "images" in names:
            raise ValueError(
                f"{folder} has folders 'images' and '{names[name].name}', as data for {task} do. "
                "kora adapt learns classes of pictures (a folder for each class), of pixels "
                "(images and masks of the same names), and boxes (COCO json, Pascal VOC XML or "
                "YOLO txt)."
            )
    for path in inside:
        below = {one.name.lower(): one.name for one in _folders(path)}
        other = next((name for name in ("masks", *_OTHER_TASKS) if name in below), None)
        if path.name.lower() in PARTS and "images" in below and other is not None:
            raise ValueError(
                f"{path} has folders '{below['images']}' and '{below[other]}', which are no "
                "classes. For a class of each pixel, kora adapt expects folders named images and "
                "masks; for boxes, COCO json, Pascal VOC XML or YOLO txt; for classes of pictures, "
                "a folder for each class."
            )
    parts = {path: PARTS[path.name.lower()] for path in inside if path.name.lower() in PARTS}
    beside = [path for path in inside if path not in parts and _pictures_in(path)]
    if beside and not any(_folders(path) for path in parts):
        parts = {}  # a class may be called train
    if "train" not in parts.values():
        if any(_folders(path) for path in parts):
            named = ", ".join(path.name for path in parts)
            raise ValueError(
                f"{folder} has {named} and no folder train. Add one with class folders, or, if "
                "these are classes, rename them."
            )
        rows, notes = _of_classes(folder, folder, "")
        return Layout(folder, folder, rows, "a folder for each class", notes)
    others = [path.name for path in inside if path not in parts]
    notes = []
    if others:
        notes.append(f"Left out, as they are no part: {_some(others)}.")
    rows = []
    for path, part in parts.items():
        found, more = _of_classes(folder, path, part)
        rows += found
        notes += more
    there = sorted({row.part for row in rows}, key=["train", "val", "test"].index)
    return Layout(folder, folder, rows, f"parts with class folders ({', '.join(there)})", notes)


def _of_classes(root: Path, folder: Path, part: str) -> tuple[list[TableRow], list[str]]:
    """Rows of the class folders in a folder, and notes."""
    suffixes = image_suffixes()
    rows: list[TableRow] = []
    others: list[str] = []
    empty: list[str] = []
    deep: Counter[str] = Counter()
    for path in _folders(folder):
        before = len(rows)
        for file in visible_files(path):
            name = file.relative_to(root).as_posix()
            if file.suffix.lower() in suffixes:
                rows.append(TableRow(name, path.name, part))
                deep[path.name] += file.parent != path
            else:
                others.append(name)
        if len(rows) == before:
            empty.append(path.name)
    loose = _pictures_in(folder)
    if loose and not rows:
        raise ValueError(
            f"{folder} holds {len(loose)} pictures itself ({_some(loose)}), and no class "
            f"folders with pictures. Put those of each class into a folder of its name, such as "
            f"{folder}/cat, or name them in a CSV file with the columns path and label."
        )
    notes = []
    if loose:
        notes.append(f"Pictures outside of the classes, left out: {len(loose)} ({_some(loose)}).")
    if others:
        notes.append(f"Files that are no pictures, left out: {len(others)} ({_some(others)}).")
    if empty:
        notes.append(f"Folders without pictures, left out: {_some(empty)}.")
    below = [name for name, count in deep.items() if count]
    if below:
        notes.append(
            f"Pictures in deeper folders count for the outermost: those of {_some(below)}."
        )
    return rows, notes


def _pictures_in(folder: Path) -> list[str]:
    """Names of the pictures in a folder itself."""
    suffixes = image_suffixes()
    return sorted(
        file.name for file in folder.iterdir() if file.is_file() and file.suffix.lower() in suffixes
    )


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")


def _require_readable(folder: Path) -> None:
    """Check all folders: `os.walk` would silently skip those that cannot be read.

    Names must be text, too, as tables are to hold them.
    """
    for here, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if not is_text(name):
                raise ValueError(f"{here}: the name {os.fsencode(name)!r} is no UTF-8. Rename it.")
        for path in [here, *(os.path.join(here, name) for name in folders)]:
            if not os.access(path, os.R_OK | os.X_OK):
                raise PermissionError(
                    f"The folder {path} may not be read. Change its permissions, or move it away."
                )


def _check(place: Path, layout: Layout) -> None:
    """Refuse pictures without classes to tell apart.

    Raises:
        ValueError: says what is wrong, and what to do.
    """
    labels = layout.labels
    if not labels:
        raise ValueError(
            f"{place} holds no pictures. Expected {place}/CLASS/PICTURE, with endings such as "
            ".jpg or .png."
        )
    if len(labels) == 1:
        inner = place / labels[0] if place.is_dir() else place
        deeper = [path.name for path in _folders(inner)] if inner.is_dir() else []
        advice = (
            f"Its folders look like classes ({_some(deeper)}): try kora adapt {inner}."
            if len(deeper) > 1
            else "Add a folder of pictures of something else."
        )
        raise ValueError(
            f"{place} has one class, '{labels[0]}', and there is nothing to tell it from. {advice}"
        )
    if len(labels) > MOST_CLASSES:
        raise ValueError(
            f"{place} has {len(labels):,} classes, and kora adapt takes {MOST_CLASSES:,} at most. "
            "Are its folders classes? If so, use kora fit --config image_folder."
        )
    same: dict[str, str] = {}
    for label in labels:
        twin = same.setdefault("".join(label.split()).casefold(), label)
        if twin != label:
            raise ValueError(
                f"The classes {twin!r} and {label!r} of {place} differ only in case or spaces. "
                "Put their pictures together, or rename one."
            )
    spaced = [label for label in labels if label != label.strip()]
    if spaced:
        raise ValueError(
            f"The name of the class {spaced[0]!r} of {place} begins or ends with a space, which "
            "tables lose. Rename its folder."
        )
    _check_parts(place, layout)
    for label, count in Counter(row.label for row in layout.rows).items():
        if count == 1:
            raise ValueError(
                f"The class '{label}' of {place} has one picture; two are the least, one to learn "
                "from and one to test. Add pictures, or remove the class."
            )


def _check_parts(place: Path, layout: Layout) -> None:
    by_part: dict[str, set[str]] = {}
    for row in layout.rows:
        by_part.setdefault(row.part, set()).add(row.label)
    learnt = by_part.get("train", set()) | by_part.get("", set())
    for part in ("val", "test"):
        unknown = sorted(by_part.get(part, set()) - learnt)
        if unknown:
            raise ValueError(
                f"The {part} part of {place} has classes without training pictures: "
                f"{_some(unknown)}. Add pictures of them to the training part, or remove them."
            )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
