"""Where a folder keeps the images and the boxes of its parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datamodules.loading import folders_in, image_suffixes, visible_files

__all__ = ["Layout", "LayoutName", "Source", "find_layout"]

LayoutName = Literal["coco", "voc", "yolo", "instances"]

_PARTS = ("train", "val", "test")  # how the names of parts begin
_WHOLE = ("train", "default")  # or that of the only one; CVAT calls it default


@dataclass(frozen=True)
class Source:
    """The files of a part.

    Args:
        images: The folder of its images.
        boxes: The file, or the folder of files, that holds its boxes.
        listed: A list of the names in use, one a line; None: all.
    """

    images: Path
    boxes: Path
    listed: Path | None = None


@dataclass(frozen=True)
class Layout:
    """The layout of a folder: `coco` (json), `voc` (XML), `yolo` (txt) or `instances` (masks).

    `sources` are the files of its parts by their names; a folder without parts has only "", as one
    with a training part alone.
    """

    name: LayoutName
    root: Path
    sources: dict[str, Source]

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the parts; empty if there are none."""
        return tuple(name for name in self.sources if name)


def find_layout(root: Path) -> Layout:
    """The layout of a folder, from what is in it.

    Raises:
        FileNotFoundError: The folder is not there.
        ValueError: It has none of the layouts.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root} (data.root).")
    finders: dict[LayoutName, Callable[[Path], dict[str, Source]]] = {
        "coco": _coco,
        "voc": _voc,
        "yolo": lambda here: _beside(here, ("labels",), ".txt"),
        "instances": lambda here: _beside(here, ("instances",), ".png"),
    }
    for name, find in finders.items():
        sources = find(root)
        if len(sources) == 1 and next(iter(sources)).lower().startswith(_WHOLE):
            return Layout(name, root, {"": next(iter(sources.values()))})
        if sources:
            return Layout(name, root, sources)
    found = ", ".join(path.name for path in sorted(root.iterdir())[:8]) or "nothing"
    raise ValueError(
        f"{root} has no layout that DetectionFolder knows (found there: {found}). Expected COCO "
        "(annotations/instances_*.json, annotations.json and images/, or _annotations.coco.json "
        "beside the images), Pascal VOC (images/ and annotations/ with XML files, or its own "
        "folders), YOLO (images/ and labels/), or images/ and instances/ (masks)."
    )


def _coco(root: Path) -> dict[str, Source]:
    found: dict[str, Source] = {}
    for file in sorted((root / "annotations").glob("instances_*.json")):
        part = file.stem.removeprefix("instances_")
        below = root / "images" / part
        found[part] = Source(below if below.is_dir() else root / part, file)
    return found or _each(root, _one_coco)


def _one_coco(here: Path) -> dict[str, Source]:
    if (here / "_annotations.coco.json").is_file():
        return {"": Source(here, here / "_annotations.coco.json")}
    if (here / "annotations.json").is_file():
        images = here / "images"
        return {"": Source(images if images.is_dir() else here, here / "annotations.json")}
    return {}


def _voc(root: Path) -> dict[str, Source]:
    years = [
        here
        for here in (root, *sorted(root.glob("VOC20*")), *sorted(root.glob("VOCdevkit/VOC20*")))
        if (here / "JPEGImages").is_dir() and (here / "Annotations").is_dir()
    ]
    if len(years) > 1:
        raise ValueError(
            f"{root} holds {' and '.join(map(str, years))}, of which each is a data set. Set "
            "data.root to one of them."
        )
    if not years:
        return _beside(root, ("annotations", "boxes", "Annotations"), ".xml") or _each(root, _mixed)
    images, boxes = years[0] / "JPEGImages", years[0] / "Annotations"
    # aeroplane_train.txt and its like are of one class.
    lists = [p for p in sorted(years[0].glob("ImageSets/Main/*.txt")) if "_" not in p.stem]
    return {path.stem: Source(images, boxes, path) for path in lists} or {"": Source(images, boxes)}


def _mixed(here: Path) -> dict[str, Source]:
    """XML files among the images."""
    names = {path.stem for path in here.glob("*.xml")}
    suffixes = image_suffixes() if names else ()
    found = any(path.stem in names and path.suffix.lower() in suffixes for path in here.iterdir())
    return {"": Source(here, here)} if found else {}


def _beside(root: Path, names: tuple[str, ...], suffix: str) -> dict[str, Source]:
    """`images` beside a folder of one of these names that holds such files, or parts of both."""

    def one(here: Path) -> dict[str, Source]:
        images = here / "images"
        for boxes in (here / name for name in names):
            if images.is_dir() and any(p.suffix.lower() == suffix for p in visible_files(boxes)):
                both = [name for name in folders_in(images) if (boxes / name).is_dir()]
                if any(name.lower().startswith(_PARTS) for name in both):
                    return {part: Source(images / part, boxes / part) for part in both}
                return {"": Source(images, boxes)}
        return {}

    return _each(root, one)


def _each(root: Path, one: Callable[[Path], dict[str, Source]]) -> dict[str, Source]:
    """What `one` finds in the folder, or else in the folders in it, which are parts."""
    parts = {name: one(root / name).get("") for name in folders_in(root)}
    return one(root) or {name: source for name, source in parts.items() if source is not None}
