"""NYU Depth V2: indoor photographs with depth in metres, for training and testing depth heads.

Source: Silberman, Hoiem, Kohli and Fergus 2012, "Indoor Segmentation and Support Inference from
RGBD Images"; https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html

Shapes: B images a batch, N images of an official part, H height, W width
"""

from __future__ import annotations

import warnings
from functools import cached_property
from typing import Any, ClassVar, get_args

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import ImageDataModule, Part, Split, part_of
from datamodules.download import download as fetch
from datamodules.download import expand_path, obtain_folder
from datamodules.loading import ReadDataset
from datamodules.locks import locked
from datamodules.nyu.cache import STEP_M, CachedFrames, write_cache
from datamodules.nyu.labelled import DepthKind
from datamodules.nyu.layout import (
    LABELLED_URL,
    SPLITS_NAME,
    FoldersLayout,
    LabelledLayout,
    find_layout,
    labelled_in,
)
from datamodules.nyu.splits import SPLITS_URL, choose_by_scene
from datamodules.recipe import ImageRecipe
from datamodules.splits import IntArray

__all__ = ["NYUDepthV2"]

_LABELLED_MD5 = "520609c519fba3ba5ac58c8fefcc3530"
_SPLITS_MD5 = "08e3c3aea27130ac7c01ffd739a4535f"


class NYUDepthV2(ImageDataModule):
    """NYU Depth V2: indoor frames of 480 x 640 with depth in metres, in either of two layouts.

    Batches hold `image` uint8 (B, 3, H, W) and `depth_m` float32 (B, H, W), 0 if not measured. The
    content of `root` decides the layout. (a) `nyu_depth_v2_labeled.mat` with the official split
    of `splits.mat`: 795 training and 654 test images. (b) `{train,val}/<scene>/<n>.h5`, one file a
    frame, whose `val` is the official test part. Validation images come from scenes that no
    training image comes from: frames of one scene are nearly the same picture.

    Args:
        root: the folder with one of the layouts, or the labelled file itself.
        depth: `depths`, with holes filled in, or `raw`, as measured. Only (a) has `raw`.
        splits: the file of the official split for (a); None: `splits.mat` next to that of (a).
        archive: a local archive of (b), extracted to `root` if that folder is missing or empty.
        download: get (a), 2.8 GB, if `root` is missing or empty and there is no `archive`.
        cache: folder for the cache of (a), see `prepare_cache`; None: next to the labelled file.
        num_workers: worker processes, which read the frames.
        **options: the options of every data module, see `ImageDataModule`.

    Raises:
        ValueError: an option is out of range.
    """

    num_classes = 1
    class_names: list[str] = ["scene"]  # noqa: RUF012
    dataset_name: ClassVar[str] = "NYUDepthV2"
    knows_groups: ClassVar[bool] = True

    def __init__(
        self,
        root: str = "data/nyu",
        *,
        depth: DepthKind = "depths",
        splits: str | None = None,
        archive: str | None = None,
        download: bool = True,
        cache: str | None = None,
        num_workers: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(num_workers=num_workers, **options)
        if depth not in get_args(DepthKind):
            raise ValueError(f"data.depth is {depth!r}; use depths or raw.")
        self.depth: DepthKind = depth
        self.root = expand_path(root, key="data.root")
        self.splits = None if splits is None else expand_path(splits, key="data.splits")
        self.archive = None if archive is None else expand_path(archive, key="data.archive")
        self.cache = None if cache is None else expand_path(cache, key="data.cache")
        self.download = download

    @cached_property
    def layout(self) -> LabelledLayout | FoldersLayout:
        """The layout at `root`."""
        return find_layout(self.root, depth=self.depth, splits=self.splits, cache=self.cache)

    @property
    def image_size(self) -> tuple[int, int]:  # type: ignore[override]
        """Height and width of every frame; 480 x 640 in the official files."""
        return self.layout.size

    @property
    def recipe(self) -> ImageRecipe:
        """A depth map covers the whole picture, so nothing is cut off."""
        return ImageRecipe()

    @property
    def official_parts(self) -> dict[Part, str]:  # type: ignore[override]
        """What the layout calls the two parts."""
        return self.layout.official_parts

    def prepare_data(self) -> None:
        """Extract the archive, or download (a), unless there is something at `root`."""
        if self.archive is not None:
            obtain_folder(self.root, archive=self.archive)
        elif self.download:
            self._download()
        find_layout(self.root, depth=self.depth, splits=self.splits, cache=self.cache)

    def prepare_cache(self) -> str | None:
        """Convert (a) into a cache that is read many times faster; returns one sentence on it.

        Depth in it is rounded to 0.2 mm. It is used from then on, as long as it matches the file;
        the file must stay. None for (b), whose files are read as they are.

        Raises:
            RuntimeError: a frame is damaged.
            ValueError: a depth beyond 13.1 m.
            OSError: no room on the disk.
        """
        if not isinstance(self.layout, LabelledLayout):
            return None
        said = write_cache(self.layout.cache, self.layout.file)
        self.__dict__.pop("layout", None)  # so that the cache is found
        return said

    def read_labels(self, part: Part) -> IntArray:
        """Zeros (N,): there are no classes."""
        return np.zeros(len(self.layout.reader_of(part)[1]), dtype=np.int64)

    def read(self, part: Part, positions: IntArray) -> dict[str, Tensor]:
        reader, frames = self.layout.reader_of(part)
        return reader.read(frames[np.asarray(positions, dtype=np.int64)])

    def make_dataset(self, split: Split) -> Dataset[Any]:
        reader, frames = self.layout.reader_of(part_of(split))
        indices = self.indices(split)
        return ReadDataset(reader, frames[indices], labels=self.labels(split), indices=indices)

    def choose_train_and_val(self, labels: IntArray) -> tuple[IntArray, IntArray]:
        scenes = self.layout.scenes("train")
        if scenes is None:
            if self.validates:
                warnings.warn(
                    f"{self.root} does not say which scene a frame is from (no 'scenes'), so "
                    "validation images may show scenes of training images, which flatters them.",
                    stacklevel=2,
                )
            return super().choose_train_and_val(labels)
        return choose_by_scene(
            scenes,
            self.subset,
            class_names=self.class_names,
            val_fraction=self.val_fraction,
            val_images=self.val_images,
            seed=self.resolved_seed(),
        )

    def fingerprint(self) -> str:
        """SHA-256 over samples of the labelled file, or over the names and sizes of all files."""
        return self.layout.fingerprint()

    def protocol_extras(self) -> dict[str, Any]:
        layout = self.layout
        total, used = len(self.read_labels("train")), len(self.indices("train"))
        asked = None if self.subset is None else self.subset.fraction
        share = used / total if asked is None else asked
        labelled = isinstance(layout, LabelledLayout)
        cached = labelled and isinstance(layout.reader_of("train")[0], CachedFrames)
        return {
            "layout": layout.name,
            "depth": self.depth if labelled else "depth",
            "depth_rounding": f"steps of {1000 * STEP_M:g} mm (cache)" if cached else "none",
            "training_frames": total,
            "training_share": f"{100 * share:.3g} % of {total:,} "
            f"{'labelled frames' if labelled else 'frames'} = {used:,} images",
            "scenes": self._scene_counts(),
        }

    def _scene_counts(self) -> dict[str, int | None] | None:
        """Scenes of each split, and how many scenes of the test also train; None if unknown."""
        train, test = self.layout.scenes("train"), self.layout.scenes("test")
        if train is None or test is None:
            return None
        of_split: dict[Split, list[str]] = {"train": train, "val": train, "test": test}
        used = {
            split: {scenes[position] for position in self.indices(split)}
            for split, scenes in of_split.items()
        }
        counts: dict[str, int | None] = {split: len(names) for split, names in used.items()}
        if used["test"] == {"official"}:  # a folder of all test scenes, without their names
            return {**counts, "test": None, "train_and_test": None}
        return {**counts, "train_and_test": len(used["train"] & used["test"])}

    def _download(self) -> None:
        """Get (a) into an empty folder; if only its split is missing, get that."""
        folder, labelled = labelled_in(self.root)
        visible = {path.name for path in folder.glob("*") if not path.name.startswith(".")}
        wanted = []
        if self.root == folder and not visible - {SPLITS_NAME}:
            wanted.append((LABELLED_URL, labelled, _LABELLED_MD5, "data.root"))
        if self.splits is None and (wanted or labelled.is_file()):
            wanted.append((SPLITS_URL, folder / SPLITS_NAME, _SPLITS_MD5, "data.splits"))
        wanted = [one for one in wanted if not one[1].exists()]
        if not wanted:
            return
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".download.lock"):
            for url, path, md5, key in wanted:
                if not path.exists():  # another process may have got it while this one waited
                    fetch(url, path, md5=md5, key=key)
