"""What all data modules share: splits, loaders, augmentation and the record of the protocol.

A new data set is a subclass that sets `num_classes` and overrides `read_labels`, `read` and
`fingerprint` (and `prepare_data` if there is something to download).

Shapes: N images of an official split, n chosen images, B images a batch
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.augment import Augment, augment_batch, check_augment, draws_needed
from datamodules.cache.option import describe_caches
from datamodules.depth_statistics import DepthStatistics, spread_places, spread_statistics
from datamodules.detection.boxes import Boxes
from datamodules.detection.statistics import BoxStatistics
from datamodules.eval_sampling import evaluation_loader
from datamodules.groups import (
    check_pattern,
    group_numbers,
    groups_of,
    warn_of_shared_groups,
)
from datamodules.loading import ArrayDataset, ReadDataset, as_is, begin_worker
from datamodules.recipe import ImageRecipe
from datamodules.replaceable import ReplaceableDataset
from datamodules.sampling import EpochShuffle, LateLoader, sample_draws, shares_of
from datamodules.segmentation.statistics import MaskStatistics
from datamodules.splits import (
    IntArray,
    Subset,
    check_labels,
    choose_train_and_validation,
    class_counts,
    index_sha256,
)

__all__ = ["ImageDataModule", "Part", "Split", "part_of"]

Split = Literal["train", "val", "test"]
Part = Literal["train", "test"]  # the two official parts; "val" is always cut out of "train"
Batch = dict[str, Tensor]

_SPLITS: tuple[Split, ...] = ("train", "val", "test")
_STAGE_SPLITS: dict[str | None, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("test",),
    None: _SPLITS,
}


class ImageDataModule(LightningDataModule):
    """Images as uint8 RGB (B, 3, H, W) with `label` (B,) and `index` (B,), both int64.

    `index` is the position in the official split. Resizing and normalising belong to the backbone.

    Args:
        batch_size: images a training batch.
        eval_batch_size: images a batch of validation, test and prediction; None: `batch_size`.
        num_workers: worker processes. 0 is the fastest if decoded images are in memory.
        val_fraction: share of the official training set that validates; 0 for no validation.
        val_images: exact number of validation images; overrides `val_fraction`.
        subset: train on this part only; validation images then come from outside it.
        groups: regular expression whose first group, found in the path of an image, names what the
            image belongs to: a drive, a scene, a patient. All images of one are on one side of
            training and validation, and a test image of a training group is warned of.
        seed: seed of the splits and of the order; None: the seed that Lightning set for the whole
            run (`seed_everything`), else 0.
        augment: none, flip, flip_crop, flip_crop_color, flip_resize_crop or flip_resize_crop_color;
            for each image and its maps, on the device, only in training.
        augment_views: number of augmented views of an image; each epoch takes the next one, so
            that their features can be cached (docs/explanation/feature-cache.md); None: a new view
            each epoch.

    Raises:
        ValueError: an option is out of range.
    """

    num_classes: int
    class_names: list[str]
    image_size: tuple[int, int]
    #: Names of the classes of `mask`, if batches hold it.
    mask_names: list[str] | None = None
    #: Names of the classes of `boxes`, if batches hold them.
    box_names: list[str] | None = None
    dataset_name: ClassVar[str]
    #: Whether the data set itself says which images belong together; then `groups` is refused.
    knows_groups: ClassVar[bool] = False
    #: What the data set calls its two parts.
    official_parts: ClassVar[dict[Part, str]] = {"train": "train", "test": "test"}
    #: Folder in which decoded images are kept for all runs, see datamodules/cache/option.py.
    cache: Path | None = None
    #: Collate function for `make_dataset`; None: torch's default.
    collate: ClassVar[Any] = staticmethod(as_is)

    def __init__(
        self,
        *,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        val_fraction: float = 0.1,
        val_images: int | None = None,
        subset: Subset | None = None,
        groups: str | None = None,
        seed: int | None = None,
        augment: Augment = "none",
        augment_views: int | None = None,
    ) -> None:
        super().__init__()
        if type(self) is ImageDataModule:
            raise ValueError(
                "data: ImageDataModule is what data modules have in common; `kora list` names them."
            )
        sizes = {
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size,
            "augment_views": augment_views,
        }
        others = {"num_workers": num_workers, "val_images": val_images, "seed": seed}
        for key, value in {**sizes, **others}.items():
            least = 1 if key in sizes else 0
            if value is not None and value < least:
                raise ValueError(f"data.{key} is {value}; it must be at least {least}.")
        if not 0 <= val_fraction < 1:
            raise ValueError(
                f"data.val_fraction is {val_fraction}; it must lie in [0, 1). For an exact number "
                "of images use val_images."
            )
        check_augment(augment)
        if augment_views is not None and augment == "none":
            raise ValueError(
                f"data.augment_views is {augment_views}, and data.augment is none: there is one "
                "view of each image. Choose an augmentation, or leave augment_views out."
            )
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.val_fraction = val_fraction
        self.val_images = val_images
        self.subset = subset
        if groups is not None and self.knows_groups:
            raise ValueError(
                f"data.groups is {groups!r}, and {self.dataset_name} itself says which images "
                "belong together. Leave it out."
            )
        self.groups = None if groups is None else check_pattern(groups)
        self.seed = seed
        self.augment: Augment = augment
        self.augment_views = augment_views
        self._part_labels: dict[Part, IntArray] = {}
        self._indices: dict[Split, IntArray] = {}
        #: Of the splits that were asked for.
        self.loader_datasets: dict[Split, ReplaceableDataset] = {}
        self._data_sha256: str | None = None
        self._draws: Tensor | None = None

    def read_labels(self, part: Part) -> IntArray:
        """Labels (N,) of an official part in its order; -1 for images of classes not in use.

        Called once a part, before any image is decoded. Sets `class_names` if not set before.
        """
        raise NotImplementedError

    def read(self, part: Part, positions: IntArray) -> Batch:
        """Decoded data of these positions: `image` uint8 (n, 3, H, W), and any further targets."""
        raise NotImplementedError

    def group_names(self, part: Part) -> Sequence[str] | None:
        """What each image (N,) of an official part belongs to, "" if alone; None: all are alone.

        Raises:
            ValueError: `groups` is set, and the images have no paths, or it is not found in one.
        """
        if self.groups is None:
            return None
        return groups_of(self.groups, self.image_names(part))

    def image_names(self, part: Part) -> Sequence[str]:
        """Paths (N,) of the images of an official part, in which `groups` is found."""
        raise ValueError(
            f"data.groups is set, and the images of {self.dataset_name} have no paths to find it "
            "in. Leave it out."
        )

    def fingerprint(self) -> str:
        """SHA-256 that changes when the data on disk does."""
        raise NotImplementedError

    def protocol_extras(self) -> dict[str, Any]:
        """Options of this data set that belong in the protocol; plain types."""
        return {}

    @property
    def recipe(self) -> ImageRecipe:
        """How any picture is made like the images of this data; a run keeps it for predictions.

        The centre is cut to the proportions of the data and scaled to its size. Override it if
        the output must cover the whole picture, as a depth map does.
        """
        return ImageRecipe("crop", self.image_size)

    def make_dataset(self, split: Split) -> Dataset[Any]:
        """The data set of a split. Decodes it into memory once; override to stream from disk."""
        columns = self.read(part_of(split), self.indices(split))
        return ArrayDataset(
            {
                **columns,
                "label": torch.from_numpy(self.labels(split)),
                "index": torch.from_numpy(self.indices(split)),
            }
        )

    def prepare_cache(self) -> str | None:
        """Fill the cache of decoded images, so that runs start at once; returns a sentence."""
        if self.cache is None:
            return None
        self.setup()
        return describe_caches(one.source for one in self.loader_datasets.values())

    @property
    def validates(self) -> bool:
        """Whether there is a validation split, by the options alone."""
        return self.val_fraction > 0 if self.val_images is None else self.val_images > 0

    def resolved_seed(self) -> int:
        """The seed in use: the option, else Lightning's global seed, else 0."""
        return int(os.environ.get("PL_GLOBAL_SEED", "0")) if self.seed is None else self.seed

    def setup_splits(self) -> None:
        """Choose the images of every split. Reads labels only, so it is quick; idempotent.

        Raises:
            ValueError: an empty part, or an impossible subset or validation size.
            RuntimeError: a label out of range.
        """
        if self._indices:
            return
        for part, name in self.official_parts.items():
            self._part_labels[part] = check_labels(
                self.read_labels(part),
                num_classes=self.num_classes,
                source=f"The {name} set of {self.dataset_name}",
            )
        train, val = self.choose_train_and_val(self._part_labels["train"])
        test = np.flatnonzero(self._part_labels["test"] >= 0)
        self._indices = {"train": train, "val": val, "test": test}

    def choose_train_and_val(self, labels: IntArray) -> tuple[IntArray, IntArray]:
        """Positions (n,) that train and that validate; override where images belong together."""
        names = self.group_names("train")
        if names is not None:
            warn_of_shared_groups(names, self.group_names("test"))
        return choose_train_and_validation(
            labels,
            self.subset,
            class_names=self.class_names,
            val_fraction=self.val_fraction,
            val_images=self.val_images,
            seed=self.resolved_seed(),
            groups=None if names is None else group_numbers(names),
        )

    def warn_of_groups(self, train: IntArray, val: IntArray) -> None:
        """Warn of groups on two sides; for a choice that is not made by groups."""
        names = self.group_names("train")
        if names is not None:
            of_train, of_val = ([names[place] for place in places] for places in (train, val))
            warn_of_shared_groups(of_train, of_val, "validation")
            warn_of_shared_groups(names, self.group_names("test"))

    def setup(self, stage: str | None = None) -> None:
        """Choose the splits and decode those that `stage` needs; None: all. Idempotent."""
        self.setup_splits()
        for split in _STAGE_SPLITS[stage]:
            if len(self.indices(split)):
                self.loader_dataset(split)

    def loader_dataset(self, split: Split) -> ReplaceableDataset:
        """The data set that the loaders of a split read; its images can be replaced."""
        if split not in self.loader_datasets:
            self.setup_splits()
            self.loader_datasets[split] = ReplaceableDataset(self.make_dataset(split), self.collate)
        return self.loader_datasets[split]

    def indices(self, split: Split) -> IntArray:
        """Positions (n,) of a split within its official part, ascending."""
        assert self._indices, "call setup() first"
        return self._indices[split]

    def labels(self, split: Split) -> IntArray:
        """Labels (n,) of a split, in the order of `indices`."""
        return self._part_labels[part_of(split)][self.indices(split)]

    def images(self, split: Split, positions: Sequence[int] | IntArray) -> Tensor:
        """uint8 images (n, 3, H, W) at these places of a split (0 is its first image)."""
        return self.samples(split, positions)["image"]

    def samples(self, split: Split, positions: Sequence[int] | IntArray) -> Batch:
        """Images and maps at these places of a split (0 is its first image), not augmented."""
        rows = np.asarray(positions, dtype=np.int64)
        dataset = self.loader_datasets[split].source if split in self.loader_datasets else None
        if isinstance(dataset, ArrayDataset | ReadDataset):
            return dataset.__getitems__(rows)
        return self.read(part_of(split), self.indices(split)[rows])

    def depth_statistics(self, split: Split, *, most_images: int = 1000) -> DepthStatistics:
        """Statistics of the depth of a split, from at most `most_images` evenly spread images.

        Raises:
            ValueError: the data has no `depth_m`, or the split no image.
        """
        self.setup_splits()
        return spread_statistics(self, split, most_images=most_images)

    def mask_statistics(self, split: Split, *, most_images: int = 1000) -> MaskStatistics:
        """Statistics of the masks of a split, from at most `most_images` evenly spread images.

        Raises:
            ValueError: the data has no `mask`, or the split no image.
        """
        self.setup_splits()
        images = len(self.indices(split))
        if self.mask_names is None or not images:
            raise ValueError(
                f"The {split} split of {self.dataset_name} holds no image with a mask. Use "
                "datamodules.SegmentationFolder, or datamodules.Synthetic with data.maps: [mask]."
            )
        return MaskStatistics.of_masks(
            self.masks_at(split, spread_places(images, most_images)),
            num_classes=len(self.mask_names),
            image_size=self.image_size,
            of_images=images,
        )

    def masks_at(self, split: Split, positions: IntArray) -> Iterator[NDArray[np.uint8]]:
        """Masks (H, W) at these places of a split, each at its own size."""
        for position in positions:
            yield self.samples(split, [int(position)])["mask"][0].numpy()

    def box_statistics(self, split: Split, *, most_images: int = 1000) -> BoxStatistics:
        """Statistics of the boxes of a split, from at most `most_images` evenly spread images.

        Raises:
            ValueError: the data has no `boxes`, or the split no image.
        """
        self.setup_splits()
        images = len(self.indices(split))
        if self.box_names is None or not images:
            raise ValueError(
                f"The {split} split of {self.dataset_name} holds no image with boxes. Use "
                "datamodules.DetectionFolder, or datamodules.Synthetic with data.maps: [boxes]."
            )
        return BoxStatistics.of_boxes(
            self.boxes_at(split, spread_places(images, most_images)),
            num_classes=len(self.box_names),
            of_images=images,
        )

    def boxes_at(self, split: Split, positions: IntArray) -> Iterator[Boxes]:
        """Boxes at these places of a split, in the own pixels of each picture."""
        samples = self.samples(split, positions)
        size = (int(samples["image"].shape[-2]), int(samples["image"].shape[-1]))
        for boxes, labels in zip(samples["boxes"], samples["box_label"], strict=True):
            own = labels >= 0
            labels_N = labels[own].numpy()
            nothing_N = np.zeros(len(labels_N), dtype=bool)
            yield Boxes(size, boxes[own].numpy(), labels_N, nothing_N)

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        self.setup_splits()
        return self._loader("val") if len(self.indices("val")) else []

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        # Lightning itself divides predictions without repetition.
        return self._loader("test", shared=False)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Draw the numbers for augmentation of a training batch while `index` is on the CPU."""
        self._draws = None
        training = self.trainer is not None and self.trainer.training
        if training and self.augment != "none" and "image" in batch:
            self._draws = self._draws_of(batch, self.view())
        return batch

    def view(self) -> int:
        """Number of the augmented view that this epoch takes: the epoch, modulo `augment_views`."""
        assert self.trainer is not None
        progress: Any = self.trainer.fit_loop.epoch_progress.current
        epoch = int(progress.processed)
        return epoch if self.augment_views is None else epoch % self.augment_views

    def augmented(self, batch: Batch, view: int) -> Batch:
        """A batch, augmented as in training for this view of its images."""
        return self._augment(batch, self._draws_of(batch, view))

    def _draws_of(self, batch: Batch, view: int) -> Tensor:
        count = draws_needed(self.augment)
        return sample_draws(batch["index"], count, seed=self.resolved_seed(), epoch=view)

    def _augment(self, batch: Batch, draws_BK: Tensor) -> Batch:
        return augment_batch(batch, augment=self.augment, draws_BK=draws_BK, crop=self.image_size)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment a training batch and its maps, on the device; leave every other batch alone."""
        if self._draws is None:
            return batch
        return self._augment(batch, self._draws)

    def protocol(self) -> dict[str, Any]:
        """How this data was split, in plain types; the same on every machine."""
        self.setup_splits()
        if self._data_sha256 is None:
            self._data_sha256 = self.fingerprint()
        return {
            "dataset": self.dataset_name,
            "num_classes": self.num_classes,
            "official_split": {s: self.official_parts[part_of(s)] for s in _SPLITS},
            "sizes": {s: len(self.indices(s)) for s in _SPLITS},
            "subset": None if self.subset is None else asdict(self.subset),
            "val_fraction": self.val_fraction,
            "val_images": self.val_images,
            **({} if self.groups is None else {"groups": self.groups}),
            "seed": self.resolved_seed(),
            "augment": self.augment,
            **({} if self.augment_views is None else {"augment_views": self.augment_views}),
            "sha256": {s: index_sha256(self.indices(s)) for s in _SPLITS},
            "data_sha256": self._data_sha256,
            **self.protocol_extras(),
        }

    def save_splits(self, folder: str | Path) -> Path:
        """Write `splits.json` (protocol and indices) into `folder`; returns its path."""
        record = {"protocol": self.protocol()}
        record["indices"] = {s: self.indices(s).tolist() for s in _SPLITS}
        path = Path(folder) / "splits.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(record) + "\n", encoding="utf-8")
        os.replace(temporary, path)
        return path

    def summary(self) -> dict[str, Any]:
        """Sizes, classes, images a class (min and max over the classes) and image size (H, W)."""
        self.setup_splits()
        splits: dict[str, dict[str, Any]] = {}
        for split in _SPLITS:
            counts = class_counts(self.labels(split), num_classes=self.num_classes)
            splits[split] = {**counts, "official_split": self.official_parts[part_of(split)]}
        return {
            "dataset": self.dataset_name,
            "num_classes": self.num_classes,
            "class_names": list(self.class_names),
            "image_size": list(self.image_size),
            "splits": splits,
        }

    def _loader(self, split: Split, *, shared: bool = True) -> DataLoader[Any]:
        dataset, training = self.loader_dataset(split), split == "train"
        options: dict[str, Any] = {
            "dataset": dataset,
            "batch_size": self.batch_size if training else self.eval_batch_size,
            "num_workers": dataset.workers(self.num_workers),
            "collate_fn": dataset.collate,
            "worker_init_fn": begin_worker,
            "pin_memory": torch.cuda.is_available(),
            "persistent_workers": dataset.workers(self.num_workers) > 0,
        }
        if training:
            seed = self.resolved_seed()
            order = EpochShuffle(len(dataset), seed=seed, **shares_of(self.trainer))
            return LateLoader(sampler=order, **options)
        return evaluation_loader(options, self.trainer if shared else None)


def part_of(split: Split) -> Part:
    """The official part from which a split is taken."""
    return "test" if split == "test" else "train"
