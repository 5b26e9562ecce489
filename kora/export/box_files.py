"""What `kora predict` writes of detected boxes: COCO's files, and pictures with the boxes.

Shapes: n boxes of an image
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from PIL import Image, ImageDraw, ImageFont

from kora.console.formats import short_name
from kora.heads.detection import Boxes
from kora.reports.detection import coco_results
from kora.reports.palette import palette_of, text_on
from kora.runs.durable import write_atomically
from kora.tasks import DetectionTask
from kora.tasks.image_files import Batch
from kora.tasks.load import AdaptedModel

__all__ = ["BoxFiles", "drawn"]

_MOST_PICTURES = 100
_LONGEST = 1600  # pixels of a side of a picture


class BoxFiles:
    """`predictions.json`, which grows as `.part`; `images.json`; and pictures of the first images.

    COCO's tools read the two files with `COCO("images.json").loadRes("predictions.json")`. An
    image's id is its place among the files.

    Args:
        model: A model of detection.
        folder: Where to write; it exists.
        files: The images.
        names: Their names in the files.
    """

    heads = ("picture_file", "boxes", "best_class", "score")

    def __init__(
        self, model: AdaptedModel, folder: Path, files: Sequence[Path], names: Sequence[str]
    ) -> None:
        assert isinstance(model.task, DetectionTask)
        self.model = model
        self.folder = folder
        self.files = files
        self.names = names
        self.classes = [model.name_of(label) for label in range(model.task.num_classes or 0)]
        self._images: list[dict[str, Any]] = []
        self._path = folder / "predictions.json"
        self._part = folder / "predictions.json.part"

    def __enter__(self) -> Self:
        self._file = self._part.open("w", encoding="utf-8")
        self._before = "[\n"
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._file:
            self._file.write("]\n" if self._before != "[\n" else "[]\n")
        if kind is None:
            os.replace(self._part, self._path)
            found = {
                "info": {"description": f"The images of {self._path.name}, without true boxes"},
                "licenses": [],
                "images": self._images,
                "annotations": [],
                "categories": [{"id": k, "name": name} for k, name in enumerate(self.classes)],
            }
            text = json.dumps(found)
            write_atomically(self.folder / "images.json", lambda path: path.write_text(text))

    def add(self, batch: Batch, found: Sequence[Boxes]) -> dict[int, list[str]]:
        """Write the boxes of a batch; gives the cells `heads` of each image by its place."""
        cells = {}
        for place, size, one in zip(batch.places, batch.sizes, found, strict=True):
            one = {name: values.cpu() for name, values in one.items()}
            name = self.names[place]
            self._images.append(
                {"id": place, "file_name": name, "height": size[0], "width": size[1]}
            )
            lone = {key: values[None] for key, values in one.items()}
            for row in coco_results(lone, 0, place, self.classes):
                self._file.write(self._before + json.dumps({**row, "file_name": name}))
                self._before = ",\n"
            best = (
                [self.classes[int(one["labels"][0])], f"{float(one['scores'][0]):.4f}"]
                if len(one["labels"])
                else ["", ""]
            )
            cells[place] = [self._picture(place, one), str(len(one["labels"])), *best]
        self._file.flush()
        return cells

    def _picture(self, place: int, found: Boxes) -> str:
        """Write the picture of one of the first images; gives its name."""
        if place >= _MOST_PICTURES:
            return ""
        picture = self.model.recipe.open(self.files[place])
        made = drawn(picture, found, self.classes)
        own = str(self.names[place])
        name = own if own.lower().endswith((".jpg", ".jpeg")) else f"{own}.jpg"
        write_atomically(
            self.folder / name, lambda path: made.save(path, format="JPEG", quality=90)
        )
        return name


def drawn(picture: Image.Image, found: Boxes, names: Sequence[str]) -> Image.Image:
    """A picture, made smaller if it is large, with boxes, their classes and scores.

    Boxes with a score below 0.3, `SHOWN_FROM` of kora/reports/figures_detection.py, are left out.
    """
    from kora.reports.figures_detection import SHOWN_FROM  # it imports matplotlib

    made = picture.copy()
    made.thumbnail((_LONGEST, _LONGEST))
    scale = made.width / picture.width, made.height / picture.height
    line = max(1, round(max(made.size) / 300))
    font = ImageFont.load_default(max(10, 5 * line))
    draw = ImageDraw.Draw(made)
    colours = palette_of(len(names))
    sure_n = found["scores"] >= SHOWN_FROM
    columns = (found[key][sure_n].flip(0).tolist() for key in ("boxes", "labels", "scores"))
    for box, label, score in zip(*columns, strict=True):  # the best are on top
        x1, y1, x2, y2 = (side * scale[n % 2] for n, side in enumerate(box))
        draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colours[label], width=line)
        text = f"{short_name(names[label], 24)} {score:.2f}"
        right, bottom = draw.textbbox((0, 0), text, font=font)[2:]
        at = min(x1, max(0, made.width - right)), max(0, y1 - bottom - line)
        draw.rectangle((at[0], at[1], at[0] + right, at[1] + bottom), fill=colours[label])
        draw.text(at, text, fill=text_on(colours[label]), font=font)
    return made
