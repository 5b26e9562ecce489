"""Boxes of YOLO's text files: a line `class cx cy w h` for each box, in shares of the image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from datamodules.detection.boxes import MOST_SHARE, Annotations, Picture, own_boxes
from datamodules.detection.layouts import Source
from datamodules.loading import by_stem, image_suffixes, text_of
from datamodules.recipe import upright_size

__all__ = ["read_yolo", "yolo_names"]

_LISTS = ("classes.txt",)


def read_yolo(source: Source, names: list[str]) -> Annotations:
    """The boxes of the images of a part; one without a file, or with an empty one, has none.

    Raises:
        ValueError: A line is no box, its class is unknown, a box is in pixels or wrong, or two
            images share a file.
    """
    paths = by_stem(source.images, image_suffixes())
    files = by_stem(source.boxes, (".txt",))
    _require_partners(source, [file for stem, file in files.items() if stem not in paths])
    pictures = []
    for stem, path in tqdm(paths.items(), desc="Reading boxes", unit="file", delay=2):
        size, file = upright_size(path), files.get(stem)
        rows = [] if file is None else _rows(file, len(names))
        boxes = own_boxes(
            [
                (
                    (x - w / 2) * size[1],
                    (y - h / 2) * size[0],
                    (x + w / 2) * size[1],
                    (y + h / 2) * size[0],
                )
                for _, _, x, y, w, h in rows
            ],
            labels=[row[1] for row in rows],
            size=size,
            name=lambda place, file=file, rows=rows: f"{file}, line {rows[place][0]}",  # type: ignore[misc]
        )
        pictures.append(Picture(path.relative_to(source.images).as_posix(), path, boxes))
    return Annotations(source.boxes, names, True, pictures)


def _require_partners(source: Source, without: list[Path]) -> None:
    """Refuse boxes without an image."""
    alone = [path for path in without if path.name not in _LISTS]
    if alone:
        more = f" (and {len(alone) - 1} more)" if len(alone) > 1 else ""
        raise FileNotFoundError(
            f"{alone[0]} has no image in {source.images}{more}. A pair has one name, less the "
            "ending. Put the image there, or remove the file."
        )


def _rows(file: Path, classes: int) -> list[tuple[int, int, float, float, float, float]]:
    """Number of the line, class, centre and size of each box."""
    rows = []
    for number, line in enumerate(text_of(file).splitlines(), 1):
        if not line.strip():
            continue
        where, words = f"{file}, line {number}", line.split()
        try:
            label = int(words[0])
            x, y, w, h = (float(word) for word in words[1:])
        except ValueError as error:
            raise ValueError(
                f"{where}: found {line.strip()[:60]!r}, expected class cx cy w h, the class a "
                "whole number."
            ) from error
        if not 0 <= label < classes:
            raise ValueError(
                f"{where}: the class {label} is unknown; there are {classes}, 0 to {classes - 1}. "
                "Correct it, or the names of the classes (data.yaml or classes.txt)."
            )
        if max(x, y, w, h) > MOST_SHARE:
            raise ValueError(
                f"{where}: {max(x, y, w, h):g} is above 1, so the box is in pixels, and shares of "
                "width and height are expected. Divide it by the size of the image."
            )
        rows.append((number, label, x, y, w, h))
    return rows


def yolo_names(root: Path, labels: Path) -> list[str] | None:
    """The classes in `data.yaml` or `classes.txt`, of the root or beside the labels of a part.

    Raises:
        ValueError: The file does not name them.
    """
    for file in (root / "data.yaml", root / "data.yml"):
        if file.is_file():
            return _names_of(_read_yaml(file), file)
    for file in (root / "classes.txt", root / "labels/classes.txt", labels / "classes.txt"):
        if file.is_file():
            names = [line.strip() for line in text_of(file).rstrip().splitlines()]
            if "" in names:
                raise ValueError(
                    f"{file}, line {names.index('') + 1} is empty, so it is not clear which number "
                    "the next class has. Remove the line, or name its class."
                )
            return names
    return None


def _read_yaml(file: Path) -> Any:
    """The content of a file, which needs no alias; these could stand for more than fits."""
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        text = file.read_text(encoding="utf-8-sig")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=loader)):
            raise ValueError("it uses aliases (*name); write what they stand for")
        return yaml.load(text, Loader=loader)
    except (OSError, yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file}: cannot be read as YAML ({reason}).") from error


def _names_of(content: Any, file: Path) -> list[str]:
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[place] for place in range(len(names))]
    if (
        not isinstance(names, list)
        or not names
        or not all(isinstance(name, str | int) for name in names)
    ):
        raise ValueError(
            f"{file}: expected names, a list of the classes or a table 0: name, 1: ..."
        )
    return [str(name) for name in names]
