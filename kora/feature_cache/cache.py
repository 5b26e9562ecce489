"""The features that a strategy reads, computed once and kept for all later epochs.

For strategies that never change the backbone (`Strategy.frozen_pass`), on images that are the same
in every epoch. Each split has a table (kora/feature_cache/table.py) whose name has a SHA-256 of all
that its numbers depend on, so all runs with the same backbone, data and sites share it, also in
parallel.

Shapes: B images a batch, n images of a split, W numbers an image
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from lightning import Trainer
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import ImageDataModule
from datamodules.cache.rows import UnwritableError, alone
from datamodules.replaceable import ReplaceableDataset
from kora.backbone.frozen_inputs import Inputs
from kora.console.say import say
from kora.feature_cache.computed_inputs import ComputedInputs
from kora.feature_cache.rules import (
    cache_folder,
    identity,
    is_all,
    is_all_but_augmented,
    pass_of,
    pays,
    why_not,
)
from kora.feature_cache.shared import kept_elsewhere
from kora.feature_cache.table import Layout, Table, open_table
from kora.lightning_internals import train_loaders

__all__ = ["KEPT", "CacheOption", "FeatureCache", "FilledSplit", "Kind"]

CacheOption = Literal["auto"] | bool
Kind = Literal["float32", "float16", "bfloat16"]

#: The entry of a batch that replaces `image`: rows (B, W) of a table.
KEPT = "kept"
#: Images whose rows are written at once.
_AT_ONCE = 1024
#: `auto` leaves at least this share of the free space to others.
_LEFT = 0.5


@dataclass(frozen=True)
class FilledSplit:
    """A split, or an augmented view of it, that is read from its table."""

    split: str
    view: int | None
    table: Table
    filled: int  # images that this process computed
    seconds: float  # for all of it, with checking and waiting

    def render(self) -> str:
        """One line for people."""
        there = f"{_space(self.table.layout)} in {self.table.folder}"
        made = f"filled in {self.seconds:.1f} s" if self.filled else there
        return f"feature cache, {_named(self.split, self.view)}: {made}."


class _UnsteadyError(ValueError):
    """The images differ from one reading to the next."""


class FeatureCache:
    """Keeps the frozen features that a task's adapter reads, and gives them back.

    `auto` is on if a cache is possible, saves time and has room. Without a folder, tables are in
    `cache_folder()`.

    Raises:
        ValueError: An unknown option or kind.
    """

    def __init__(
        self, option: CacheOption = "auto", kind: Kind = "float32", folder: str | None = None
    ) -> None:
        if not (isinstance(option, bool) or option == "auto"):
            raise ValueError(f"feature_cache={option!r}, expected auto, true or false.")
        if kind not in get_args(Kind):
            raise ValueError(
                f"feature_cache_dtype='{kind}', expected one of {', '.join(get_args(Kind))}."
            )
        self.option: CacheOption = option
        self.kind: Kind = kind
        self.folder = folder
        #: The splits that the fit in progress, or the last one, read from their tables.
        self.splits: list[FilledSplit] = []

    # -- use -----------------------------------------------------------------------------------

    def begin(self, task: Any, trainer: Trainer) -> None:
        """Fill missing tables and replace the images by their rows; called on every process.

        Raises:
            ValueError: It is on but not possible, or the images differ at each reading.
            UnwritableError: It is on, and there is no room.
        """
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        self.splits = []
        if self.option is False:
            return
        why = why_not(task, trainer, datamodule)
        if why is not None:
            if self.option is True:
                raise ValueError(
                    f"A feature cache is not possible: {why}. Set model.feature_cache: auto, or "
                    "off."
                )
            if is_all_but_augmented(task, trainer, datamodule):
                say(
                    f"no feature cache: {why}. {trainer.max_epochs} x "
                    f"{len(datamodule.indices('train')):,} images pass through the backbone, "
                    "instead of each image once. To use a cache, set data.augment: none, or set "
                    "data.augment_views to a fixed number of views of each image."
                )
            return
        splits = [
            split
            for split in task.cached_splits()
            if len(datamodule.indices(split))
            and (split == "train" or is_all(trainer.limit_val_batches))
        ]
        try:
            found = [
                self._filled(task, trainer, split, view=view)
                for split in splits
                for view in _views(datamodule, split)
            ]
        except (UnwritableError, _UnsteadyError) as error:
            if self.option is True:
                raise
            say(f"no feature cache: {error}")
            return
        for split in splits:
            views = [filled for filled in found if filled is not None and filled.split == split]
            if len(views) == len(_views(datamodule, split)):
                self.splits += views
                _stand_in(views, datamodule)
        # Lightning made the training loader earlier: the schedule needs its length.
        for loader in train_loaders(trainer):
            if isinstance(loader.dataset, ReplaceableDataset):
                loader.num_workers = loader.dataset.workers(loader.num_workers)

    def begin_test(self, task: Any, trainer: Trainer) -> None:
        """As `begin`, for the test images, after a fit that read its images from tables.

        The other runs of a grid then read this table. Without such a fit none is filled, as each
        image is read once.
        """
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        if self.option is False or why_not(task, trainer, datamodule) is not None:
            return
        if pass_of(task).prefix:  # it is merged for the test, which costs less than rows
            return
        if "val" not in task.cached_splits():  # the evaluation reads the images themselves
            return
        fitted = bool(self.splits) and is_all(trainer.limit_test_batches)
        try:
            filled = self._filled(task, trainer, "test", fill=fitted)
        except (UnwritableError, _UnsteadyError):
            return
        if filled is not None:
            self.splits = [one for one in self.splits if one.split != "test"] + [filled]
            _stand_in([filled], datamodule)

    def put(self, task: Any, trainer: Trainer, split: str, inputs: Inputs) -> None:
        """Keep the features of the n images of a split, which were computed elsewhere.

        Raises:
            UnwritableError: There is no room.
        """
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        folder, of = self._place(task, trainer, datamodule, split)
        layout = Layout.of(inputs, rows=len(datamodule.indices(split)), kind=self.kind)
        with alone(folder, waiting=_say_waiting):
            table = open_table(folder, of, layout, say=say)
            self._require_room(len(table.missing) * layout.row_bytes, folder)
            table.fill_missing(
                lambda rows: (
                    (some, layout.pack({name: one[some] for name, one in inputs.items()}))
                    for some in np.array_split(rows, -(-len(rows) // _AT_ONCE))
                )
            )

    @staticmethod
    def end(trainer: Trainer) -> None:
        """Restore the images: another task, or a loop other than a fit, may read them next."""
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(datamodule, ImageDataModule):
            for dataset in datamodule.loader_datasets.values():
                dataset.replacement = None

    def unpack(self, rows_BW: Tensor) -> Inputs:
        """The adapter's inputs, from a batch of rows."""
        return self.splits[0].table.layout.unpack(rows_BW)

    def record(self) -> dict[str, Any] | None:
        """For the record of a run: what was read from tables; None if nothing was."""
        if not self.splits:
            return None
        return {
            "dtype": self.kind,
            "splits": list(dict.fromkeys(filled.split for filled in self.splits)),
            "bytes_an_image": self.splits[0].table.layout.row_bytes,
            "images_computed": sum(filled.filled for filled in self.splits),
            "seconds": round(sum(filled.seconds for filled in self.splits), 3),
        }

    # -- filling -------------------------------------------------------------------------------

    def _place(
        self,
        task: Any,
        trainer: Trainer,
        datamodule: ImageDataModule,
        split: str,
        *,
        view: int | None = None,
    ) -> tuple[Path, dict[str, Any]]:
        """The folder of a split's table, and what its numbers depend on."""
        of = identity(task, trainer, datamodule, split=split, kind=self.kind, view=view)
        digest = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()
        root = cache_folder() if self.folder is None else Path(self.folder).expanduser()
        reader = pass_of(task).prefix or task.adapter.label
        name = f"{_plain(task.backbone.name)}-{_plain(reader)}-{digest[:24]}"
        return root / name, of

    def _filled(
        self, task: Any, trainer: Trainer, split: str, *, view: int | None = None, fill: bool = True
    ) -> FilledSplit | None:
        """The table of a split, filled by the first process; None if it must not be filled."""
        begun = time.perf_counter()
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        folder, of = self._place(task, trainer, datamodule, split, view=view)
        may_fill = fill and (self.option is True or pays(trainer))
        if not (may_fill or folder.is_dir()):
            return None
        inputs = ComputedInputs(task, trainer, split, view=view)
        if not inputs.steady():
            raise _UnsteadyError(
                f"{type(datamodule).__name__} gives a different image each time it is asked for "
                f"the same one ({split}); a cache would keep the first. Set model.feature_cache: "
                "off"
            )
        try:
            with alone(folder, waiting=_say_waiting):
                table = self._table(inputs, folder, of, may_fill=may_fill)
        except UnwritableError as error:
            if error.errno is None:  # its message is complete
                raise
            raise UnwritableError(
                f"the feature cache {folder} cannot be written: {error.strerror}. Make room, or "
                "set model.feature_cache_folder to another disk, or model.feature_cache: off."
            ) from error
        if table is None:
            return None
        filled = FilledSplit(split, view, table, inputs.images, time.perf_counter() - begun)
        say(filled.render())
        return filled

    def _table(
        self, inputs: ComputedInputs, folder: Path, of: Mapping[str, Any], *, may_fill: bool
    ) -> Table | None:
        """The table in a folder, filled if needed; None if it must not be filled."""
        layout = inputs.layout(self.kind)
        table = open_table(folder, of, layout, say=say)
        if not len(table.missing) and not inputs.agree(table):
            say(f"{folder} does not match these images: it is filled anew.")
            table = Table(folder, of, layout)
        missing = len(table.missing)
        if not missing:
            return table
        if not may_fill:
            return None
        self._require_room(missing * layout.row_bytes, folder)
        if inputs.keeps_tokens and self.option is not True:
            _require_memory(layout.rows * layout.row_bytes)
        named, room = _named(inputs.split, inputs.view), f"{_space(layout)} in {folder}"
        elsewhere = kept_elsewhere(folder, of, layout)
        if elsewhere is not None:
            say(f"feature cache, {named}: {room}, taken from {elsewhere.table.folder.name}.")
            table.fill_missing(elsewhere.of_rows)
            if inputs.agree(table):
                return table
            say(f"{folder} does not match these images: it is filled anew.")
            table = Table(folder, of, layout)
        done = layout.rows - len(table.missing)
        more = f", of which {done:,} images are done" if done else ""
        say(f"feature cache, {named}: {room}{more}.")
        table.fill_missing(
            lambda rows: ((some, layout.pack(tensors)) for some, tensors in inputs.of_rows(rows))
        )
        return table

    def _require_room(self, needed: int, folder: Path) -> None:
        free = shutil.disk_usage(folder.parent).free
        usable = free if self.option is True else free * (1 - _LEFT)
        if needed <= usable:
            return
        share = "" if self.option is True else f"; auto takes {1 - _LEFT:.0%} of that at most"
        raise UnwritableError(
            f"the feature cache needs {_size(needed)}, and {folder.parent} has {_size(free)} free"
            f"{share}. Make room, set model.feature_cache_folder to another disk, or take "
            "model.feature_cache_dtype: bfloat16, which needs half."
        )


def free_memory() -> int:
    """Bytes of memory that nobody uses; of all memory where the system does not say (macOS)."""
    known = "SC_AVPHYS_PAGES" in os.sysconf_names
    return os.sysconf("SC_AVPHYS_PAGES" if known else "SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _require_memory(needed: int) -> None:
    free = free_memory()
    if needed > free / 2:
        raise UnwritableError(
            f"tokens take {_size(needed)}, more than half of the free memory ({_size(free)}), so "
            "each epoch would read them from the disk. Set model.feature_cache: on to keep them "
            "all the same."
        )


class _CachedRows(Dataset[dict[str, Tensor]]):
    """Batches of rows, with everything that a batch holds besides its images."""

    def __init__(self, rest: Any, tables: Sequence[Table], view: Callable[[], int]) -> None:
        self.rest = rest
        self.tables = tables
        self.view = view

    @property
    def table(self) -> Table:
        """The table of the view that this epoch takes."""
        return self.tables[self.view() if len(self.tables) > 1 else 0]

    def __len__(self) -> int:
        return self.tables[0].layout.rows

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {**self.rest[row], KEPT: self.table.read([row])[0]}

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        return {**self.rest.__getitems__(rows), KEPT: self.table.read(rows)}


def _views(datamodule: ImageDataModule, split: str) -> Sequence[int | None]:
    """The augmented views of the images of a split; None is an image as it is."""
    count = datamodule.augment_views
    return (None,) if count is None or split != "train" else range(count)


def _named(split: str, view: int | None) -> str:
    return split if view is None else f"{split}, view {view + 1}"


def _stand_in(filled: Sequence[FilledSplit], datamodule: ImageDataModule) -> None:
    """Replace the images of a split by its table, or by those of all its views."""
    split: Any = filled[0].split
    dataset = datamodule.loader_dataset(split)
    rest = dataset.without_images(
        labels=datamodule.labels(split), indices=datamodule.indices(split)
    )
    dataset.replacement = _CachedRows(rest, [one.table for one in filled], datamodule.view)


def _say_waiting() -> None:
    say("waiting for another process that fills the same feature cache.")


def _plain(name: str) -> str:
    """A name with only the characters that suit a file name."""
    return "".join(letter if letter.isalnum() or letter in "._" else "_" for letter in name)


def _space(layout: Layout) -> str:
    each, all_of_it = layout.row_bytes, layout.rows * layout.row_bytes
    return f"{layout.rows:,} images x {_size(each)} = {_size(all_of_it)}"


def _size(count: int) -> str:
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.4g} {unit}"
