"""CamVid: road scenes from four drives, split by drive.

Source: Brostow, Fauqueur and Cipolla 2009, "Semantic object classes in video: a high-definition
ground truth database", doi:10.1016/j.patrec.2008.04.005; the split with 11 classes is that of
Badrinarayanan et al. 2015, arXiv:1511.00561.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from datamodules.base import Part
from datamodules.segmentation.folder import SegmentationFolder
from datamodules.segmentation.masks import IGNORED
from datamodules.segmentation.pairs import Pair
from datamodules.splits import IntArray

__all__ = ["CamVid"]

CamVidSplit = Literal["drive", "official"]

_NAMES = [
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
    "bicyclist",
]  # fmt: skip
_VOID = 11
_PARTS = ("train", "val", "test")


class CamVid(SegmentationFolder):
    """CamVid: 701 road scenes of four drives, 11 classes.

    `root` holds `train`, `val` and `test`, each with `images` and `masks` (values 0 to 10; 11 is
    void). The official `val` is 7 s out of a training drive, and 62 of the 233 test images continue
    another one: neighbouring frames, which reward memory. `split: drive` therefore validates on the
    drive `val_drive`, which then does not train. It tests on the official test images, and gives
    the results of its two drives apart.

    Args:
        root: Folder with the three parts.
        split: `drive`, or `official`.
        val_drive: Drive that validates: 0001TP, 0006R0 or 0016E5.
        **options: The options of `SegmentationFolder` and of every data module.

    Raises:
        ValueError: An option is out of range.
    """

    dataset_name: ClassVar[str] = "CamVid"
    knows_groups: ClassVar[bool] = True

    def __init__(
        self,
        root: str = "data/camvid",
        *,
        split: CamVidSplit = "drive",
        val_drive: str = "0006R0",
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        self._given_names = self._given_names or list(_NAMES)
        self.ignore_index = _VOID if self.ignore_index == IGNORED else self.ignore_index
        if split not in get_args(CamVidSplit):
            raise ValueError(f"data.split is {split!r}; use drive or official.")
        self.split: CamVidSplit = split
        self.val_drive = val_drive

    @property
    def official_parts(self) -> dict[Part, str]:  # type: ignore[override]
        """All frames that are not in `test` may train."""
        return {"train": "train and val", "test": "test"}

    @cached_property
    def _part_pairs(self) -> dict[Part, list[Pair]]:
        train, val, test = (self.layout.pairs(part) for part in _PARTS)
        return {"train": train + val, "test": test}

    def group_names(self, part: Part) -> Sequence[str]:
        """The drive of each frame."""
        return [name.partition("_")[0] for name in self.image_names(part)]

    def choose_train_and_val(self, labels: IntArray) -> tuple[IntArray, IntArray]:
        """Positions that train and that validate: `val_drive`, or the official `val`."""
        drives = np.array(self.group_names("train"))
        if self.split == "official":
            val = np.arange(len(self.layout.pairs("train")), len(labels))
        else:
            val = np.flatnonzero(drives == self.val_drive)
            if not len(val):
                raise ValueError(
                    f"data.val_drive is {self.val_drive!r}; the drives of {self.root} that may "
                    f"train are {', '.join(sorted(set(drives.tolist())))}."
                )
        return self.with_validation(labels, val)

    def protocol_extras(self) -> dict[str, Any]:
        official = {"train": "train", "val": "val", "test": "test"}
        drives = {"train": "other drives", "val": f"drive {self.val_drive}", "test": "test"}
        named = official if self.split == "official" else drives
        return {**super().protocol_extras(), "split": self.split, "official_split": named}
