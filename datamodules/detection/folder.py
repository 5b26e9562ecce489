"""Images and boxes in folders.

Shapes: N images of a part, n chosen images, K classes
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from datamodules.augment import check_box_augment
from datamodules.base import Part, Split, part_of
from datamodules.detection.boxes import Annotations, Boxes, Picture
from datamodules.detection.coco import read_coco
from datamodules.detection.instances import read_instances
from datamodules.detection.layouts import Layout, Source, find_layout
from datamodules.detection.reader import BoxReader
from datamodules.detection.statistics import BoxStatistics
from datamodules.detection.voc import read_voc
from datamodules.detection.yolo import read_yolo, yolo_names
from datamodules.groups import cut_parts
from datamodules.in_parts import _FolderInParts, require_apart
from datamodules.loading import ReadDataset
from datamodules.recipe import ImageRecipe
from datamodules.splits import IntArray

__all__ = ["DetectionFolder"]

BoxFit = Literal["contain", "stretch"]


class DetectionFolder(_FolderInParts):
    """Images with boxes of objects, in one of four layouts, found by what is there.

    - COCO json: `annotations/instances_train2017.json` beside `train2017`; `annotations.json`
      beside `images`; or `train/_annotations.coco.json`, as Roboflow writes it.
    - Pascal VOC XML: `images` and `annotations` (or `boxes`), XML files among the images, or VOC's
      own `JPEGImages`, `Annotations` and `ImageSets/Main`. Images without a file are not used.
    - YOLO txt: `images/train` and `labels/train`, or `train/images` and `train/labels`, with the
      classes in `data.yaml` or `classes.txt`. Images without a file have no object.
    - Masks: `images` and `instances`, PNG in which each value above 0 is an object; a folder for
      each class, or one class.

    Parts have the names train and test (else val), or are named by the options. Of a folder
    without parts, or with a training part alone, `test_fraction` become the test part, the same in
    every run.

    An image keeps its proportions: it is scaled to fit inside `image_size`, at the top left, and
    the rest is grey. Batches hold `image` uint8 (B, 3, H, W), `boxes` float32 (B, N, 4), x1, y1,
    x2, y2 in its pixels, `box_label` int64 (B, N), -1 where there is no box, and `own_size` int64
    (B, 2), the height and width of the picture itself. Data with crowd regions (COCO's iscrowd)
    also has `box_crowd` bool (B, N): these do not count as a miss, and are background in training.

    Args:
        root: Folder with one of the layouts.
        class_names: Names of the K classes, in their order, among those in the files. None: all in
            the files of the training part.
        resize: `contain` fits each image inside `image_size` with its proportions, and fills the
            rest with grey; `stretch` ignores its proportions, as other tasks on the same images may
            (`kora.MultiTask`).
        **options: The options of every folder in parts, and of every data module.

    Raises:
        ValueError: An option is out of range.
    """

    dataset_name: ClassVar[str] = "DetectionFolder"

    def __init__(
        self,
        root: str,
        *,
        class_names: list[str] | None = None,
        resize: BoxFit = "contain",
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        if resize not in get_args(BoxFit):
            raise ValueError(f"data.resize is {resize!r}; use contain or stretch.")
        check_box_augment(self.augment)
        self.resize: BoxFit = resize
        self._given_names = None if class_names is None else _own_names(class_names)

    # -- what is there -------------------------------------------------------------------------

    @cached_property
    def layout(self) -> Layout:
        """The layout of `root`; extracts the archive if that has not happened yet."""
        self.prepare_data()
        return find_layout(self.root)

    @property
    def official_parts(self) -> dict[Part, str]:  # type: ignore[override]
        """What the two parts are called; a part cut out of a folder without parts has its share."""
        train, test = self._given_parts
        if not self.layout.parts:
            return {"train": "train (drawn)", "test": f"test (drawn, {self.test_fraction:g})"}
        return {"train": train or self._part("train"), "test": test or self._part("test", "val")}

    def _part(self, *beginnings: str) -> str:
        """The part with the shortest name that begins so."""
        parts = sorted(self.layout.parts, key=len)
        found = (part for start in beginnings for part in parts if part.lower().startswith(start))
        return next(found, beginnings[0])

    @cached_property
    def _annotations(self) -> dict[str, Annotations]:
        """What the files of each part in use say, by the name of the part; "" of all."""
        if not self.layout.parts:
            given = zip(("train", "test", "val"), (*self._given_parts, self.val_dir), strict=True)
            for key, name in given:
                if name is not None:
                    raise ValueError(
                        f"data.{key}_dir is {name!r}, and {self.root} has no parts to choose from: "
                        "folders whose names begin with train, val or test. Leave it out: "
                        "data.test_fraction of the images will test."
                    )
            return {"": self._read_part("")}
        names = list(self.official_parts.values())
        names += [] if self.val_dir is None else [self.val_dir]
        if len(set(names)) < len(names):
            raise ValueError(
                f"The parts that train, test and validate are {', '.join(names)}: one would be "
                "used twice. Set data.train_dir, data.test_dir and data.val_dir to different ones."
            )
        return {name: self._read_part(name) for name in names}

    def _read_part(self, part: str) -> Annotations:
        if part not in self.layout.sources:
            raise FileNotFoundError(
                f"There is no part {part!r} in {self.root} (parts: "
                f"{', '.join(self.layout.parts) or 'none'}). data.train_dir, data.test_dir and "
                "data.val_dir name parts."
            )
        source = self.layout.sources[part]
        if not source.images.is_dir():
            raise FileNotFoundError(
                f"There is no folder {source.images} with the images of {source.boxes}."
            )
        found = self._read_source(source)
        flat = [name for picture in found.pictures for name in picture.boxes.without_area]
        if flat:
            warnings.warn(
                f"Boxes without area are left out of {found.source}: {len(flat)}, such as that of "
                f"{flat[0]}.",
                stacklevel=2,
            )
        if not any(len(picture.boxes.labels) for picture in found.pictures):
            raise ValueError(
                f"{found.source} holds no box of the {len(found.pictures)} images in "
                f"{source.images}. Are the boxes those of another set?"
            )
        return found

    def _read_source(self, source: Source) -> Annotations:
        if self.layout.name == "coco":
            return read_coco(source)
        if self.layout.name == "voc":
            return read_voc(source)
        if self.layout.name == "instances":
            return read_instances(source, self._given_names)
        names = yolo_names(self.layout.root, source.boxes) or self._given_names
        if names is None:
            raise ValueError(
                f"Nothing names the classes of {source.boxes}. Write {self.root / 'classes.txt'}, "
                "a name a line in the order of their numbers, or set data.class_names."
            )
        return read_yolo(source, names)

    @cached_property
    def class_names(self) -> list[str]:  # type: ignore[override]
        """Names of the K classes."""
        return self._given_names or _own_names(next(iter(self._annotations.values())).names)

    @property
    def box_names(self) -> list[str]:  # type: ignore[override]
        """Names of the K classes of the boxes."""
        return self.class_names

    @property
    def recipe(self) -> ImageRecipe:
        """The recipe by which every image is read; nothing is cut off."""
        return ImageRecipe(self.resize, self.image_size)

    # -- splits --------------------------------------------------------------------------------

    @cached_property
    def _pictures(self) -> dict[Part, list[Picture]]:
        """The pictures (N,) of both parts; those of `val_dir` come last in the training part."""
        listed = {name: self._labelled(part) for name, part in self._annotations.items()}
        if self.layout.parts:
            train, test, *more = listed.values()
            val = more[0] if more else []
            require_apart(*([p.image for p in part] for part in (train, val, test)))
            return {"train": train + val, "test": test}
        pictures = listed[""]
        names = [picture.name for picture in pictures]
        return cut_parts(pictures, names, self.groups, test_fraction=self.test_fraction)

    def _labelled(self, part: Annotations) -> list[Picture]:
        """The pictures of a part, their labels places in `class_names`."""
        used = np.unique(np.concatenate([p.boxes.labels for p in part.pictures]))
        named = part.names if part.listed else [part.names[label] for label in used]
        unknown = [name for name in named if name not in self.class_names]
        missing = [name for name in self.class_names if part.listed and name not in part.names]
        if self._given_names is not None:
            unknown, missing = [part.names[k] for k in used if part.names[k] in unknown], []
        if unknown or missing:
            fault = f"{unknown[0]!r} is none of" if unknown else f"{missing[0]!r} is missing among"
            raise ValueError(
                f"{part.source}: the class {fault} {', '.join(self.class_names[:10])}. All parts "
                "need the same classes: correct the files, or name those of all with "
                "data.class_names."
            )
        places = [self.class_names.index(n) if n in self.class_names else -1 for n in part.names]
        if places == list(range(len(places))):
            return part.pictures
        new = np.array(places, dtype=np.int64)
        return [
            replace(p, boxes=replace(p.boxes, labels=new[p.boxes.labels])) for p in part.pictures
        ]

    def image_names(self, part: Part) -> list[str]:
        """Paths (N,) of the images below the folder of their part."""
        return [picture.name for picture in self._pictures[part]]

    def choose_train_and_val(self, labels: IntArray) -> tuple[IntArray, IntArray]:
        """As for every data module; with `val_dir`, its images validate."""
        if self.val_dir is not None:
            val = np.arange(
                len(labels) - len(self._annotations[self.val_dir].pictures), len(labels)
            )
            return self.with_validation(labels, val)
        unused = [name for name in self.layout.parts if name.lower().startswith("val")]
        in_use = any("val" in name.lower() for name in self.official_parts.values())
        if unused and not in_use:  # trainval uses it
            warnings.warn(
                f"The images of the part {unused[0]} of {self.root} are not used: validation "
                f"images are taken from the training part. To validate on them, set data.val_dir: "
                f"{unused[0]}.",
                stacklevel=2,
            )
        return super().choose_train_and_val(labels)

    # -- reading -------------------------------------------------------------------------------

    def _reader(self, part: Part) -> BoxReader:
        return BoxReader(self._pictures[part], self.recipe, self._crowds)

    @cached_property
    def _crowds(self) -> bool:
        return any(p.boxes.crowd.any() for some in self._pictures.values() for p in some)

    def read(self, part: Part, positions: IntArray) -> dict[str, Tensor]:
        return self._reader(part).read(np.asarray(positions, dtype=np.int64))

    def make_dataset(self, split: Split) -> Dataset[Any]:
        reader = self._reader(part_of(split))
        indices = self.indices(split)
        return ReadDataset(reader, indices, labels=self.labels(split), indices=indices)

    def boxes_at(self, split: Split, positions: IntArray) -> Iterator[Boxes]:
        """Boxes at these places of a split, in the own pixels of each picture; no image is read."""
        reader = self._reader(part_of(split))
        chosen, title = self.indices(split)[positions], f"Counting boxes ({split})"
        for number in tqdm(chosen, desc=title, unit="image", delay=2, leave=False):
            yield reader.boxes(int(number))

    def box_statistics(self, split: Split, *, most_images: int = 1000) -> BoxStatistics:
        """As for every data module, but of all images of the split; `most_images` are opened.

        Raises:
            UnreadableImageError: One of these cannot be opened, or is not of the size of its boxes.
            ValueError: The split has no image.
        """
        super().box_statistics(split, most_images=most_images)
        pictures = self._pictures[part_of(split)]
        numbers = self.indices(split)
        return BoxStatistics.of_boxes(
            (pictures[number].boxes for number in numbers),
            num_classes=len(self.class_names),
            of_images=len(numbers),
        )

    # -- the record ----------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """SHA-256 over the names and sizes of all images, and over all boxes."""
        digest = hashlib.sha256()
        for part in ("train", "test"):
            for picture in self._pictures[part]:
                size, boxes = picture.image.stat().st_size, picture.boxes
                digest.update(os.fsencode(f"{part}/{picture.name}") + f" {size}\n".encode())
                for array in (boxes.corners, boxes.labels, boxes.crowd):
                    digest.update(array.tobytes())
        return digest.hexdigest()

    def protocol_extras(self) -> dict[str, Any]:
        train, test = (self.official_parts[part] for part in ("train", "test"))
        return {
            "official_split": {"train": train, "val": self.val_dir or train, "test": test},
            "layout": self.layout.name,
            "classes": list(self.class_names),
            "image_size": list(self.image_size),
            "resize": self.resize,
        }


def _own_names(names: Sequence[str]) -> list[str]:
    """The names of the classes, after a check.

    Raises:
        ValueError: There is none, or two are equal.
    """
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if not names or twice:
        fault = f"{twice[0]!r} is there twice" if twice else "there is none"
        raise ValueError(f"The names of the classes: {fault}. Give each class its own name.")
    return list(names)
