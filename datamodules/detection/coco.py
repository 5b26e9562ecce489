"""Boxes of COCO's json files.

Source: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.detection.boxes import (
    Annotations,
    Picture,
    own_boxes,
    require_images,
    require_pixels,
)
from datamodules.detection.layouts import Source
from datamodules.recipe import upright_size

__all__ = ["read_coco"]

#: The tables, and the keys that each of their entries needs.
_TABLES = {
    "images": ("id", "file_name"),
    "annotations": ("id", "image_id", "category_id"),
    "categories": ("id", "name"),
}


def read_coco(source: Source) -> Annotations:
    """The boxes of a json file; classes are its categories in the order of their ids.

    A category that only groups others, as Roboflow writes it, is no class.

    Raises:
        FileNotFoundError: An image is not there.
        ValueError: The file is no such json, an id is there twice or unknown, or a box is wrong.
    """
    file = source.boxes
    content = _read_json(file)
    try:
        return _annotations(content, source)
    except (TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{file}: an entry is not as in COCO's json ({error}).") from error


def _annotations(content: Mapping[str, Any], source: Source) -> Annotations:
    file = source.boxes
    images, rows, categories = (_by_id(content[name], name, file) for name in _TABLES)
    of_image: dict[Any, list[Mapping[str, Any]]] = {number: [] for number in images}
    for number, row in rows.items():
        if row["image_id"] not in images:
            raise ValueError(
                f"{file}: the annotation {number} is of the image {row['image_id']!r}, which "
                "'images' does not list. Add the image, or remove the annotation."
            )
        if row["category_id"] not in categories:
            known = ", ".join(repr(key) for key in list(categories)[:10])
            raise ValueError(
                f"{file}: the annotation {number} has the category_id {row['category_id']!r}, and "
                f"the ids in 'categories' are {known}. Correct it, or add the category."
            )
        of_image[row["image_id"]].append(row)
    groups = {  # of others: person is a person, too
        row.get("supercategory")
        for row in categories.values()
        if row.get("supercategory") != row["name"]
    }
    used = {row["category_id"] for row in rows.values()}
    classes = [k for k in sorted(categories) if k in used or categories[k]["name"] not in groups]
    places = {key: place for place, key in enumerate(classes)}
    paths = {number: source.images / image["file_name"] for number, image in images.items()}
    _require_files(paths, source)
    pictures = []
    for number, image in images.items():
        try:
            size = int(image.get("height") or 0), int(image.get("width") or 0)
        except ValueError as error:
            raise ValueError(f"{file}: the size of the image {number} is no number.") from error
        pictures.append(
            _picture(paths[number], size, of_image[number], places, source=source, number=number)
        )
    require_pixels(pictures, file)
    names = [str(categories[key]["name"]) for key in classes]
    return Annotations(file, names, True, pictures)


def _picture(
    path: Path,
    size: tuple[int, int],
    rows: Sequence[Mapping[str, Any]],
    places: Mapping[Any, int],
    *,
    source: Source,
    number: Any,
) -> Picture:
    def name(place: int) -> str:
        which = f"the annotation {rows[place]['id']} of the image {number} ({path.name})"
        return f"{source.boxes}: {which}"

    corners_N4 = np.zeros((len(rows), 4))
    for place, row in enumerate(rows):
        box = row.get("bbox")
        try:
            left, top, width, height = (float(value) for value in box or ())
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name(place)}: the bbox is {str(box)[:60]}; expected [x, y, width, height]."
            ) from error
        corners_N4[place] = left, top, left + width, top + height
        if row.get("iscrowd") not in (0, 1, None):
            raise ValueError(f"{name(place)}: iscrowd is {row['iscrowd']!r}; expected 0 or 1.")
    boxes = own_boxes(
        corners_N4,
        labels=[places[row["category_id"]] for row in rows],
        size=size if min(size) > 0 else upright_size(path),
        name=name,
        crowd=[bool(row.get("iscrowd")) for row in rows],
    )
    return Picture(path.relative_to(source.images).as_posix(), path, boxes)


def _read_json(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:  # also if it is not UTF-8
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ValueError(f"{file}: cannot be read as json ({reason}). Correct it.") from error
    missing = [
        name
        for name in _TABLES
        if not isinstance(content, dict) or not isinstance(content.get(name), list)
    ]
    if missing:
        raise ValueError(
            f"{file} has no list {missing[0]!r}: it is not COCO's json of objects, which has "
            f"{', '.join(_TABLES)}."
        )
    found: Mapping[str, Any] = content
    return found


def _by_id(entries: Sequence[Any], table: str, file: Path) -> dict[Any, Mapping[str, Any]]:
    """The entries of a table by their ids."""
    found: dict[Any, Mapping[str, Any]] = {}
    for place, entry in enumerate(entries):
        missing = [key for key in _TABLES[table] if key not in entry]
        if missing:
            which = f" (id {entry['id']})" if "id" in entry else ""
            raise ValueError(
                f"{file}: the entry {place} of {table!r}{which} has no {missing[0]!r}. Add it."
            )
        if entry["id"] in found:
            raise ValueError(
                f"{file}: the id {entry['id']} is twice in {table!r}. Give each entry its own id."
            )
        found[entry["id"]] = entry
    return found


def _require_files(paths: Mapping[Any, Path], source: Source) -> None:
    """Refuse images that are not there, lie elsewhere, or are listed twice."""
    first: dict[Path, Any] = {}
    for number, path in paths.items():
        below = path.relative_to(source.images) if path.is_relative_to(source.images) else None
        if below is None or ".." in below.parts:
            raise ValueError(
                f"{source.boxes}: the file_name of the image {number} leads out of {source.images}."
                " Give its path below that folder."
            )
        if path in first:
            raise ValueError(
                f"{source.boxes}: the images {first[path]} and {number} are both {path.name}. List "
                "it once."
            )
        first[path] = number
    require_images(list(first), source.boxes, source.images)
