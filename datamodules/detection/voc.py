"""Boxes of Pascal VOC's XML files, one for each image.

Source: Everingham et al. 2010, "The Pascal visual object classes (VOC) challenge"
"""

from __future__ import annotations

import math
import warnings
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from datamodules.detection.boxes import (
    Annotations,
    Picture,
    own_boxes,
    require_images,
    require_pixels,
)
from datamodules.detection.layouts import Source
from datamodules.loading import by_stem, image_suffixes, text_of, visible_files
from datamodules.recipe import upright_size

__all__ = ["read_voc"]

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class _Object:
    """An `object` of a file."""

    name: str
    corners: tuple[float, ...]


def read_voc(source: Source) -> Annotations:
    """The boxes of a folder of XML files, paired with the images by name; classes are sorted.

    The corners are taken as they are. Objects that are marked difficult train and count as others
    do: COCO's rules, by which boxes are evaluated, know no such mark.

    Raises:
        FileNotFoundError: A file or an image is not there.
        ValueError: A file is no such XML, or a box is wrong.
    """
    files, paths = _files(source)
    require_images(paths, source.listed or source.boxes, source.images)
    read = {
        path: _read_xml(file)
        for path, file in tqdm(
            list(zip(paths, files, strict=True)), desc="Reading boxes", unit="file", delay=2
        )
    }
    names = sorted({found.name for _, objects in read.values() for found in objects})
    places = {name: place for place, name in enumerate(names)}
    pictures = []
    for (path, (size, objects)), file in zip(read.items(), files, strict=True):
        boxes = own_boxes(
            [found.corners for found in objects],
            labels=[places[found.name] for found in objects],
            size=size or upright_size(path),
            name=lambda place, file=file: f"{file}, object {place + 1}",  # type: ignore[misc]
        )
        pictures.append(Picture(path.relative_to(source.images).as_posix(), path, boxes))
    require_pixels(pictures, source.boxes)
    return Annotations(source.boxes, names, False, pictures)


def _files(source: Source) -> tuple[list[Path], list[Path]]:
    """The XML files of a part, and their images, which may be missing."""
    images = by_stem(source.images, image_suffixes())
    if source.listed is None:
        files = [p for p in visible_files(source.boxes) if p.suffix.lower() == ".xml"]
        names = [file.relative_to(source.boxes).with_suffix("").as_posix() for file in files]
        unused = len(images.keys() - set(names))
        if unused:
            warnings.warn(
                f"{unused} of {len(images)} images in {source.images} have no XML file in "
                f"{source.boxes} and are not used. An image without objects needs a file, too.",
                stacklevel=2,
            )
    else:
        lines = [line.strip() for line in text_of(source.listed).splitlines()]
        names = [line for line in lines if line]
        outside = [n for n in names if ".." in Path(n).parts or Path(n).is_absolute()]
        if outside:
            raise ValueError(
                f"{source.listed} names {outside[0]}, which leads out of {source.boxes}. Remove "
                "the line."
            )
        files = [source.boxes / f"{name}.xml" for name in names]
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{source.listed} names {missing[0].stem}, and there is no {missing[0]} "
                f"({len(missing)} of {len(files)} are missing). Put it there, or remove the line."
            )
        twice = [name for name, number in Counter(names).items() if number > 1]
        if twice:
            raise ValueError(f"{source.listed} names {twice[0]} twice. Remove a line.")
    return files, [images.get(name, source.images / f"{name}.jpg") for name in names]


class _NoDoctype(ET.TreeBuilder):
    """Refuses document types: their entities can grow without bound, or name other files."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it declares a document type; boxes need none. Remove the line <!DOCTYPE")


def _read_xml(file: Path) -> tuple[tuple[int, int] | None, list[_Object]]:
    """Height and width, if the file gives them, and its objects."""
    try:
        root = ET.fromstring(file.read_bytes(), parser=ET.XMLParser(target=_NoDoctype()))
    except (OSError, ET.ParseError, ValueError, LookupError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{file}: cannot be read as XML ({reason}).") from error
    if root.tag != "annotation":
        raise ValueError(f"{file}: its root is <{root.tag[:60]}>; expected <annotation>.")
    height, width = (int(_number(root, f"size/{n}", file) or 0) for n in ("height", "width"))
    objects = []
    for place, found in enumerate(root.findall("object"), 1):
        name = (found.findtext("name") or "").strip()
        corners = [_number(found, f"bndbox/{corner}", file) for corner in _CORNERS]
        numbers = tuple(corner for corner in corners if corner is not None)
        if not name or len(numbers) != len(_CORNERS):
            raise ValueError(
                f"{file}, object {place}: it has no name or no bndbox; expected name and bndbox "
                f"with {', '.join(_CORNERS)}."
            )
        objects.append(_Object(name, numbers))
    return (height, width) if min(height, width) > 0 else None, objects


def _number(element: Any, path: str, file: Path) -> float | None:
    """A finite number; None if it is not there."""
    text = element.findtext(path)
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{file}: {path} is {text[:40]!r}; expected a number.")
    return number
