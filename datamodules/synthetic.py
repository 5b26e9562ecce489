"""Synthetic indoor scenes as a data module: no download, exact depth, several visual styles.

Shapes: n images, H height, W width
"""

from __future__ import annotations

import hashlib
import json
from difflib import get_close_matches
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from datamodules.augment import check_box_augment
from datamodules.base import ImageDataModule, Part, Split, part_of
from datamodules.loading import LateDataset
from datamodules.recipe import ImageRecipe
from datamodules.scenes.boxes import solid_boxes
from datamodules.scenes.render import CLASS_NAMES, MIN_SIZE, Style, render
from datamodules.scenes.solids import KINDS
from datamodules.splits import IntArray

__all__ = ["SceneMap", "Synthetic"]

SceneMap = Literal["depth_m", "mask", "boxes"]

_MASK_NAMES = ("room", "labelled solid", "furniture", "more furniture")
_BLOCK = 240  # images between two steps of the progress bar
_LONG = 2000  # images from which a bar is worth showing


class Synthetic(ImageDataModule):
    """Rendered rooms with one labelled solid: 6 shapes, plain or striped, make 12 classes.

    They are rendered into memory, about a thousand images of 64 pixels a second; without maps, when
    they are first read. Training and test images never share a scene. The same index and
    `scene_seed` in two styles are one scene in two appearances; to adapt to scenes that the source
    stage has not seen, give the target its own `scene_seed`.

    Args:
        style: studio (even light, plain walls), paint (flat tones and outlines), or night (dim
            coloured light, patterned walls, grain).
        image_size: side of the square images in pixels.
        train_images: size of the training set, validation included.
        test_images: size of the test set.
        scene_seed: which scenes; `seed` only chooses the splits among them.
        maps: further entries of a batch: `depth_m`, float32 (B, H, W), metres along the optical
            axis; `mask`, uint8 (B, H, W), 0 room, 1 labelled solid, 2 and 3 furniture, and 255
            where augmentation leaves the frame; `boxes`, float32 (B, 3, 4), x1, y1, x2, y2 in
            pixels around what shows of each solid, with `box_label`, int64 (B, 3), its shape, and
            -1 for one of which fewer than 12 pixels show.
        **options: the options of every data module, see `ImageDataModule`.

    Raises:
        ValueError: an option is out of range.
    """

    num_classes = len(CLASS_NAMES)
    dataset_name: ClassVar[str] = "Synthetic"

    def __init__(
        self,
        *,
        style: Style = "studio",
        image_size: int = 64,
        train_images: int = 4800,
        test_images: int = 1200,
        scene_seed: int = 0,
        maps: list[SceneMap] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if style not in get_args(Style):
            near = get_close_matches(str(style), get_args(Style), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"data.style is {style!r}; use one of {', '.join(get_args(Style))}.{hint}"
            )
        if image_size < MIN_SIZE:
            raise ValueError(
                f"data.image_size is {image_size} pixels; it must be at least {MIN_SIZE}, or the "
                "solids cannot be told apart."
            )
        if not 0 <= scene_seed < 2**63:
            raise ValueError(f"data.scene_seed is {scene_seed}; it must lie in [0, 2^63).")
        for key, count in (("train_images", train_images), ("test_images", test_images)):
            if count < self.num_classes:
                raise ValueError(
                    f"data.{key} is {count}; it must be at least {self.num_classes}, "
                    "one image for each class."
                )
        for name in maps or []:
            if name not in get_args(SceneMap):
                raise ValueError(
                    f"data.maps has {name!r}; it may hold {', '.join(get_args(SceneMap))}."
                )
        self.style: Style = style
        self.image_size = (image_size, image_size)
        self.scene_seed = scene_seed
        self.maps: tuple[SceneMap, ...] = tuple(maps or ())
        self.mask_names = list(_MASK_NAMES) if "mask" in self.maps else None
        self.box_names = list(KINDS) if "boxes" in self.maps else None
        if self.box_names is not None:
            check_box_augment(self.augment)
        self.class_names = list(CLASS_NAMES)
        self._part_images: dict[Part, int] = {"train": train_images, "test": test_images}

    @property
    def recipe(self) -> ImageRecipe:
        """With maps, nothing is cut off: they must cover the whole picture."""
        if self.maps == ("boxes",):
            return ImageRecipe("contain", self.image_size)
        return ImageRecipe() if self.maps else super().recipe

    def read_labels(self, part: Part) -> IntArray:
        return np.arange(self._part_images[part], dtype=np.int64) % self.num_classes

    def read(self, part: Part, positions: IntArray) -> dict[str, Tensor]:
        blocks = [positions[i : i + _BLOCK] for i in range(0, len(positions), _BLOCK)] or [
            positions
        ]
        names = ["image", *self.maps, *(["box_label"] if "boxes" in self.maps else [])]
        columns: dict[str, list[Tensor]] = {name: [] for name in names}
        bar = tqdm(
            total=len(positions),
            desc=f"Rendering {self.style} scenes ({part})",
            unit="image",
            disable=len(positions) < _LONG,
            leave=False,
        )
        with bar:
            for block in blocks:
                rendered = self._render(part, block)
                for name, column in columns.items():
                    column.append(rendered[name])
                bar.update(len(block))
        return {name: torch.cat(column) for name, column in columns.items()}

    def make_dataset(self, split: Split) -> Dataset[Any]:
        """Without maps, an image is rendered when it is first read."""
        if self.maps:
            return super().make_dataset(split)
        part = part_of(split)
        positions = self.indices(split)
        known = {
            "label": torch.from_numpy(self.labels(split)),
            "index": torch.from_numpy(positions),
        }
        return LateDataset(lambda rows: self.read(part, positions[rows])["image"], known)

    def fingerprint(self) -> str:
        """SHA-256 of the options and of one scene a class, which differs if the renderer does."""
        digest = hashlib.sha256(
            json.dumps([self.protocol_extras(), self._part_images], sort_keys=True).encode()
        )
        for part in ("train", "test"):
            first = self._render(part, np.arange(self.num_classes))
            for name in ("image", "depth_m", "mask"):
                digest.update(first[name].numpy().tobytes())
        return digest.hexdigest()

    def protocol_extras(self) -> dict[str, Any]:
        return {
            "style": self.style,
            "image_size": self.image_size[0],
            "scene_seed": self.scene_seed,
        }

    def _render(self, part: Part, positions: IntArray) -> dict[str, Tensor]:
        rendered = render(
            positions, style=self.style, seed=self.scene_seed, split=part, size=self.image_size[0]
        )
        if "boxes" in self.maps:
            mask = rendered["mask"]
            rendered |= solid_boxes(positions, mask, seed=self.scene_seed, split=part)
        return rendered
