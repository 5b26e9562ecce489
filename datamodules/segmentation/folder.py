"""Images and masks in folders.

Shapes: N images of a part, n chosen images
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from datamodules.augment import resizes
from datamodules.base import Part, Split, part_of
from datamodules.download import expand_path
from datamodules.groups import cut_parts
from datamodules.in_parts import _FolderInParts, require_apart
from datamodules.loading import ReadDataset
from datamodules.recipe import ImageRecipe
from datamodules.segmentation.masks import (
    IGNORED,
    Colours,
    MaskRecipe,
    read_colours,
    read_lines,
    require_names,
)
from datamodules.segmentation.pairs import Layout, LayoutName, Pair, find_layout
from datamodules.segmentation.reader import PairReader
from datamodules.splits import IntArray

__all__ = ["SegmentationFolder"]

MaskFit = Literal["stretch", "cover"]

_PARTS: dict[LayoutName, tuple[str, str]] = {
    "folder": ("train", "test"),
    "voc2012": ("train", "val"),
    "ade20k": ("training", "validation"),
}
_VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip


class SegmentationFolder(_FolderInParts):
    """Images with a mask of classes, paired by name, in one of three layouts.

    - Your own: `train/images`, `train/masks`, `test/images` and `test/masks`; or `images` and
      `masks` alone, of which `test_fraction` become the test part, the same in every run.
    - VOC2012 as in its archive (`ImageSets/Segmentation`, `JPEGImages`, `SegmentationClass`); its
      `val` is the test part.
    - ADE20K as in `ADEChallengeData2016` (`images`, `annotations`); its `validation` is the test
      part.

    Masks are 8-bit PNG whose values are classes (grey or palette), or RGB with `colors`. Batches
    hold `image` uint8 (B, 3, H, W) and `mask` uint8 (B, H, W), 255 where nothing counts. Validation
    and test masks keep their own size; smaller ones are padded with 255, and `mask_size` (B, 2)
    holds their heights and widths.

    Args:
        root: Folder with one of the layouts.
        class_names: Names of the K classes, in the order of their values. None: those of `colors`,
            of `classes.txt` in `root` (one a line), or of VOC2012 or ADE20K; else the masks are
            searched for the highest value.
        colors: CSV file with the lines name,r,g,b, for RGB masks; None: `class_dict.csv` in `root`,
            if it is there.
        ignore_index: Value in the files that neither trains nor counts; null: none.
        reduce_zero_label: Ignore 0 as well, and count classes from 1. None: only for ADE20K, which
            needs it.
        resize: `stretch` brings each image to `image_size`; `cover` scales it until it covers that
            size and keeps its proportions, for crops in training and for `window: slide`.
        **options: The options of every folder in parts, and of every data module.

    Raises:
        ValueError: An option is out of range.
    """

    dataset_name: ClassVar[str] = "SegmentationFolder"

    def __init__(
        self,
        root: str,
        *,
        class_names: list[str] | None = None,
        colors: str | None = None,
        ignore_index: int | None = IGNORED,
        reduce_zero_label: bool | None = None,
        resize: MaskFit = "stretch",
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        if resize not in get_args(MaskFit):
            raise ValueError(f"data.resize is {resize!r}; use stretch or cover.")
        if ignore_index is not None and not 0 <= ignore_index <= 255:
            raise ValueError(f"data.ignore_index is {ignore_index}; use 0 to 255, or null.")
        if class_names is not None:
            require_names(class_names, "data.class_names")
        if resize == "cover" and not resizes(self.augment):
            raise ValueError(
                "data.resize is cover, so images differ in size, and training needs crops of one "
                "size. Set data.augment: flip_resize_crop_color, or data.resize: stretch."
            )
        self.resize: MaskFit = resize
        self.colors = None if colors is None else expand_path(colors, key="data.colors")
        self.ignore_index = ignore_index
        self._reduce_zero_label = reduce_zero_label
        self._given_names = class_names

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
        first, second = _PARTS[self.layout.name]
        if test is None and second not in self.layout.parts and "val" in self.layout.parts:
            second = "val"
        return {"train": train or first, "test": test or second}

    @property
    def reduce_zero_label(self) -> bool:
        """Whether 0 is ignored and classes count from 1."""
        asked = self._reduce_zero_label
        return self.layout.name == "ade20k" if asked is None else asked

    @cached_property
    def palette(self) -> Colours | None:
        """The colours of the classes, if a table gives them."""
        return None if self._coloured is None else self._coloured[1]

    @cached_property
    def _coloured(self) -> tuple[list[str], Colours] | None:
        usual = self.layout.root / "class_dict.csv"
        file = self.colors or (usual if usual.is_file() else None)
        if file is None:
            return None
        if self.ignore_index not in (None, IGNORED) or self._reduce_zero_label:
            raise ValueError(
                f"{file} says which colours are classes, so data.ignore_index and "
                "data.reduce_zero_label have no effect: black and white are ignored unless they "
                "are a class. Leave them out."
            )
        names, colours = read_colours(file)
        return require_names(names, str(file)), colours

    @cached_property
    def class_names(self) -> list[str]:  # type: ignore[override]
        """Names of the K classes."""
        if self._given_names is not None:
            return list(self._given_names)
        if self._coloured is not None:
            return self._coloured[0]
        file = self.layout.root / "classes.txt"
        if file.is_file():
            return require_names(read_lines(file), str(file))
        if self.layout.name == "voc2012":
            return list(_VOC)
        if self.layout.name == "ade20k":
            listed = _ade20k_names(self.layout.root / "objectInfo150.txt")
            if listed is not None:
                return listed
        return [f"class {number}" for number in range(self._highest_value() + 1)]

    @property
    def mask_names(self) -> list[str]:  # type: ignore[override]
        """Names of the K classes of the masks."""
        return self.class_names

    def _highest_value(self) -> int:
        """The highest class in the masks of the training part."""
        masks = MaskRecipe(IGNORED, self.ignore_index, self.reduce_zero_label, None)
        pairs = self._part_pairs["train"]
        highest, ignored = 0, False
        for pair in tqdm(pairs, desc="Looking for classes in the masks", unit="mask", delay=2):
            values = masks(pair.mask)
            highest = max(highest, int(values[values != IGNORED].max(initial=0)))
            ignored = ignored or bool((values == IGNORED).any())
        if highest == 0:
            binary = ignored and self.ignore_index == IGNORED
            raise ValueError(
                f"The masks of {self.root} hold one class only, so there is nothing to tell apart. "
                + (
                    "They hold 0 and 255, and 255 means that a pixel does not count. If it is a "
                    "class, write class_dict.csv beside the masks, with the lines "
                    "background,0,0,0 and object,255,255,255."
                    if binary
                    else "Set data.class_names (and data.ignore_index, if that hides the others)."
                )
            )
        if highest >= IGNORED - 1:
            raise ValueError(
                f"The masks of {self.root} hold the value {highest}; at most {IGNORED - 1} classes "
                "are possible. Are they grey pictures, or JPEG?"
            )
        return highest

    @property
    def recipe(self) -> ImageRecipe:
        """The recipe by which every image is read; nothing is cut off."""
        return ImageRecipe(self.resize, self.image_size)

    # -- splits --------------------------------------------------------------------------------

    @cached_property
    def _part_pairs(self) -> dict[Part, list[Pair]]:
        """The pairs (N,) of both parts; those of `val_dir` come last in the training part."""
        if self.layout.parts:
            names = self.official_parts
            if names["train"] == names["test"]:
                raise ValueError(
                    f"data.train_dir and data.test_dir are both {names['test']!r}: the test would "
                    "use the training images."
                )
            train, test = (self.layout.pairs(names[part]) for part in ("train", "test"))
            val = [] if self.val_dir is None else self._validation_pairs
            require_apart(*([pair.image for pair in part] for part in (train, val, test)))
            return {"train": train + val, "test": test}
        if self.val_dir is not None:
            raise ValueError(f"data.val_dir is {self.val_dir!r}, and {self.root} has no parts.")
        whole = self.layout.pairs(None)
        paths = [pair.name for pair in whole]
        return cut_parts(whole, paths, self.groups, test_fraction=self.test_fraction)

    @cached_property
    def _validation_pairs(self) -> list[Pair]:
        if self.val_dir in self.official_parts.values():
            raise ValueError(f"data.val_dir is {self.val_dir!r}, which trains or tests already.")
        return self.layout.pairs(self.val_dir)

    def image_names(self, part: Part) -> list[str]:
        """Paths (N,) of the images below the folder of their part."""
        return [pair.name for pair in self._part_pairs[part]]

    def choose_train_and_val(self, labels: IntArray) -> tuple[IntArray, IntArray]:
        """As for every data module; with `val_dir`, its images validate."""
        unused = {"val", "valid", "validation"} & set(self.layout.parts)
        unused -= set(self.official_parts.values())
        if self.val_dir is None and unused and self.layout.name == "folder":
            part = min(unused)
            warnings.warn(
                f"The images in {self.root / part} are not used: validation images are taken from "
                f"the training part. To validate on them, set data.val_dir: {part}.",
                stacklevel=2,
            )
        if self.val_dir is None:
            return super().choose_train_and_val(labels)
        first = len(labels) - len(self._validation_pairs)
        return self.with_validation(labels, np.arange(first, len(labels)))

    # -- reading -------------------------------------------------------------------------------

    @property
    def masks(self) -> MaskRecipe:
        """How a mask is read."""
        first, index = int(self.reduce_zero_label), self.ignore_index
        last = first + self.num_classes
        if self.palette is None and index is not None and first <= index < last:
            raise ValueError(
                f"data.ignore_index is {index}, and so is the class "
                f"'{self.class_names[index - first]}', which could never be right. "
                + (
                    "For masks whose 0 does not count use data.reduce_zero_label: true."
                    if index == 0
                    else "Give what does not count a value above those of the classes, such as 255."
                )
            )
        return MaskRecipe(self.num_classes, self.ignore_index, self.reduce_zero_label, self.palette)

    def _reader(self, part: Part, *, trains: bool) -> PairReader:
        return PairReader(self._part_pairs[part], self.recipe, self.masks, trains)

    def read(self, part: Part, positions: IntArray) -> dict[str, Tensor]:
        return self._reader(part, trains=False).read(np.asarray(positions, dtype=np.int64))

    def make_dataset(self, split: Split) -> Dataset[Any]:
        reader = self._reader(part_of(split), trains=split == "train")
        indices = self.indices(split)
        return ReadDataset(reader, indices, labels=self.labels(split), indices=indices)

    def masks_at(self, split: Split, positions: IntArray) -> Iterator[NDArray[np.uint8]]:
        """Masks (H, W) at these places of a split, each at its own size; no image is read."""
        reader = self._reader(part_of(split), trains=False)
        chosen, title = self.indices(split)[positions], f"Counting pixels ({split})"
        for number in tqdm(chosen, desc=title, unit="mask", delay=2, leave=False):
            yield reader.mask(int(number))

    # -- the record ----------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """SHA-256 over the names and sizes of all images and masks."""
        digest = hashlib.sha256()
        for part in ("train", "test"):
            for pair in self._part_pairs[part]:
                sizes = f" {pair.image.stat().st_size} {pair.mask.stat().st_size}\n"
                digest.update(os.fsencode(f"{part}/{pair.name}") + sizes.encode())
        return digest.hexdigest()

    def protocol_extras(self) -> dict[str, Any]:
        train, test = (self.official_parts[part] for part in ("train", "test"))
        return {
            "official_split": {"train": train, "val": self.val_dir or train, "test": test},
            "layout": self.layout.name,
            "classes": list(self.class_names),
            "ignore_index": self.ignore_index,
            "reduce_zero_label": self.reduce_zero_label,
            "image_size": list(self.image_size),
            "resize": self.resize,
        }


def _ade20k_names(file: Path) -> list[str] | None:
    """The names in the list that comes with ADE20K: the last column, its first synonym."""
    if not file.is_file():
        return None
    return [line.split("\t")[-1].split(",")[0].strip() for line in read_lines(file)[1:]]
