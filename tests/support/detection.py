"""Folders of images with boxes, the same objects in each format."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = [
    "NAMES",
    "WRITERS",
    "coco",
    "objects",
    "write_coco",
    "write_images",
    "write_instances",
    "write_voc",
    "write_yolo",
]

NAMES = ["cat", "dog"]
SIZE = (24, 40)  # height and width
Truth = Mapping[str, Sequence[tuple[int, int, int, int, int]]]

_COLOURS = ((250, 10, 10), (10, 10, 250))


def objects(count: int, *, prefix: str = "p") -> dict[str, list[tuple[int, int, int, int, int]]]:
    """Class and corners of the objects of some images; every fourth image has none."""
    truth: dict[str, list[tuple[int, int, int, int, int]]] = {}
    for number in range(count):
        shift = number % 5
        both = [(0, 2 + shift, 3, 12 + shift, 13), (1, 22, 8 + shift, 36, 18 + shift)]
        truth[f"{prefix}{number}"] = both[: (0, 1, 2, 2)[number % 4]]
    return truth


def write_images(folder: Path, truth: Truth) -> None:
    """PNG images, grey but for their objects: red for the first class, blue for the second."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in truth.items():
        pixels = np.full((*SIZE, 3), 128, np.uint8)
        for label, x1, y1, x2, y2 in rows:
            pixels[y1:y2, x1:x2] = _COLOURS[label]
        Image.fromarray(pixels).save(folder / f"{name}.png")


def coco(truth: Truth) -> dict[str, Any]:
    """The json of these objects; the ids of the categories are 3 and 7."""
    rows = [(number, row) for number, some in enumerate(truth.values()) for row in some]
    return {
        "images": [
            {"id": number, "file_name": f"{name}.png", "height": SIZE[0], "width": SIZE[1]}
            for number, name in enumerate(truth)
        ],
        "annotations": [
            {
                "id": 100 + place, "image_id": number, "category_id": (3, 7)[label],
                "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0,
            }
            for place, (number, (label, x1, y1, x2, y2)) in enumerate(rows)
        ],
        "categories": [{"id": key, "name": n} for key, n in zip((7, 3), NAMES[::-1], strict=True)],
    }  # fmt: skip


def write_coco(folder: Path, truth: Truth) -> None:
    """`images` and `annotations.json`."""
    write_images(folder / "images", truth)
    (folder / "annotations.json").write_text(json.dumps(coco(truth)))


def write_voc(folder: Path, truth: Truth) -> None:
    """`images` and `annotations`."""
    write_images(folder / "images", truth)
    (folder / "annotations").mkdir()
    for name, rows in truth.items():
        found = "".join(
            f"<object><name>{NAMES[label]}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
            f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            for label, x1, y1, x2, y2 in rows
        )
        size = f"<size><width>{SIZE[1]}</width><height>{SIZE[0]}</height></size>"
        text = f"<annotation>{size}{found}</annotation>"
        (folder / "annotations" / f"{name}.xml").write_text(text)


def write_yolo(folder: Path, truth: Truth) -> None:
    """`images` and `labels`, and `classes.txt` among them; no file for an image without objects."""
    write_images(folder / "images", truth)
    (folder / "labels").mkdir()
    (folder / "labels/classes.txt").write_text("\n".join(NAMES))
    for name, rows in truth.items():
        lines = [
            f"{label} {(x1 + x2) / 2 / SIZE[1]:.6f} {(y1 + y2) / 2 / SIZE[0]:.6f} "
            f"{(x2 - x1) / SIZE[1]:.6f} {(y2 - y1) / SIZE[0]:.6f}"
            for label, x1, y1, x2, y2 in rows
        ]
        if lines:
            (folder / "labels" / f"{name}.txt").write_text("\n".join(lines) + "\n")


def write_instances(folder: Path, truth: Truth) -> None:
    """`images`, and `instances` with a folder of masks for each class."""
    write_images(folder / "images", truth)
    for label, kind in enumerate(NAMES):
        (folder / "instances" / kind).mkdir(parents=True)
        for name, rows in truth.items():
            mask = np.zeros(SIZE, np.uint8)
            for number, (other, x1, y1, x2, y2) in enumerate(rows):
                if other == label:
                    mask[y1:y2, x1:x2] = 3 + number
            Image.fromarray(mask).save(folder / "instances" / kind / f"{name}.png")


WRITERS: dict[str, Callable[[Path, Truth], None]] = {
    "coco": write_coco,
    "voc": write_voc,
    "yolo": write_yolo,
    "instances": write_instances,
}
