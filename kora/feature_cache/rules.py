"""When a feature cache may be used, what its numbers depend on, and where it is."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer

from datamodules.base import ImageDataModule
from kora import __version__
from kora.adapters import Strategy, describe
from kora.adapters.frozen_pass import FrozenPass, PrefixPass
from kora.backbone.sharding import ShardedBackbone
from kora.backbone.vit import Backbone, Features
from kora.runs.durable import user_cache

__all__ = [
    "cache_folder",
    "head_reads",
    "identity",
    "is_all",
    "is_all_but_augmented",
    "kept_fields",
    "note_changes",
    "pass_of",
    "pays",
    "prefix_blocks",
    "why_not",
]

#: Entries of the protocol that choose images but do not change how an image looks.
_CHOICE = {
    "num_classes", "sizes", "subset", "val_fraction", "val_images", "val_fold", "seed", "augment",
    "augment_views", "groups", "sha256",
}  # fmt: skip

_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def cache_folder() -> Path:
    """The default folder of tables: in `$KORA_CACHE`, else in the user's cache folder."""
    named = os.environ.get("KORA_CACHE")
    if named:
        return Path(named).expanduser() / "features"
    return user_cache() / "features"


def head_reads(task: Any) -> tuple[str, ...]:
    """The fields of `Features` that the head reads; all of them if that is not certain.

    A head's `reads` describes the forward pass in the same class, on unchanged features.
    """
    kind = type(task.head)
    owns_it = "reads" not in dir(kind) or _owner(kind, "forward") < _owner(kind, "reads")
    if owns_it or _owner(type(task), "features") < _owner(type(task), "inputs"):
        return Features._fields
    return tuple(task.head.reads)


def pass_of(task: Any) -> FrozenPass:
    """The pass of a task in two halves, of which a cache keeps the first.

    Raises:
        ValueError: Its strategy changes the backbone from the first block on.
    """
    blocks = prefix_blocks(task)
    if blocks:
        return PrefixPass(task.adapter, task.backbone, blocks)
    kept: FrozenPass = task.adapter.frozen_pass()
    return kept


def prefix_blocks(task: Any) -> int:
    """How many blocks stand before all that strategy and head change or read.

    0 also for a strategy that changes nothing: of that, a cache keeps more.
    """
    adapter, backbone = task.adapter, task.backbone
    if not backbone.changes:
        return 0
    own = _owner(type(adapter), "forward") < _owner(type(adapter), "untouched_blocks")
    # Checkpointing would call blocks again in backward, when they no longer begin with kept tokens.
    called_again = task.compile_module or backbone.model.grad_checkpointing
    if own or len(backbone.changes) > 1 or called_again:
        return 0
    summaries = backbone.layer_summaries
    read = [] if summaries is None else [summaries.first_block]
    return int(min([adapter.untouched_blocks(), *backbone.levels, *read]))


def kept_fields(task: Any) -> tuple[str, ...]:
    """The fields of `Features` that a cache keeps: those that head and strategy read."""
    kept = pass_of(task)
    if kept.prefix:
        return ()
    return tuple(dict.fromkeys((*head_reads(task), *kept.reads)))


def note_changes(backbone: Backbone, adapter: Strategy) -> None:
    """Record on a backbone that this strategy, attached to it, changes what it computes.

    Only as text: some strategies hold the backbone, and neither would be freed.
    """
    try:
        adapter.frozen_pass()
    except ValueError as error:
        backbone.changes.append(str(error))


def why_not(task: Any, trainer: Trainer, datamodule: Any, *, augmented: bool = True) -> str | None:
    """Why features cannot be cached, as the end of a sentence; None if they can.

    With `augmented=False`, as if the data module augmented nothing.
    """
    adapter, backbone = task.adapter, task.backbone
    blocks = prefix_blocks(task)
    if backbone.changes and not blocks:
        return str(backbone.changes[0])
    if not blocks and _owner(type(adapter), "forward") < _owner(type(adapter), "frozen_pass"):
        return f"{type(adapter).__name__} has a forward of its own, which may read the images"
    kind = type(task)
    for step in ("training_step", "validation_step", "forward", "features"):
        if _owner(kind, step) < _owner(kind, "cached_splits") or not task.cached_splits():
            return (
                f"{type(task).__name__} has a {step} of its own, which may read the images (if "
                "it takes inputs(batch) in their place, let cached_splits say so)"
            )
    if backbone.training:
        return "the backbone is in training mode"
    device = trainer.strategy.root_device.type
    if pass_of(task).keeps_tokens and device != "cpu":
        return (
            f"{adapter.label} reads all tokens of its blocks, which {device} computes faster than "
            "they are read"
        )
    if trainer.precision == "64-true":
        return "trainer.precision is 64-true, and numbers are kept in 32 bits at most"
    if isinstance(trainer.strategy, ShardedBackbone):
        return "the backbone is in shards, which no process can run alone"
    if not isinstance(datamodule, ImageDataModule):
        return f"{type(datamodule).__name__} does not say which images it gives"
    if augmented and datamodule.augment != "none":
        if datamodule.augment_views is None:
            return f"data.augment is '{datamodule.augment}', so each epoch brings other images"
        if not set(datamodule.loader_dataset("train").source[0]) <= {"image", "label", "index"}:
            return f"data.augment is '{datamodule.augment}', which moves maps with their images"
    for hook in _HOOKS:
        if getattr(type(datamodule), hook) is not getattr(ImageDataModule, hook):
            return f"{type(datamodule).__name__} changes batches in {hook}"
    return None


def is_all_but_augmented(task: Any, trainer: Trainer, datamodule: Any) -> bool:
    """Whether only the augmentation prevents a cache that would save time."""
    return pays(trainer) and why_not(task, trainer, datamodule, augmented=False) is None


def _owner(kind: type, name: str) -> int:
    """Position in the method resolution order of the class that defines a method."""
    return next(place for place, owner in enumerate(kind.__mro__) if name in vars(owner))


def is_all(limit: float) -> bool:
    """Whether a limit of Lightning's means all batches: the float 1.0; the int 1 is one batch."""
    return isinstance(limit, float) and limit == 1


def pays(trainer: Any) -> bool:
    """Whether all images, and all views of them, are seen more than once."""
    if trainer.fast_dev_run or trainer.overfit_batches or not is_all(trainer.limit_train_batches):
        return False
    epochs = trainer.max_epochs if trainer.max_epochs not in (None, -1) else float("inf")
    steps = trainer.max_steps if trainer.max_steps != -1 else float("inf")
    views = getattr(trainer.datamodule, "augment_views", None) or 1
    batches = steps * trainer.accumulate_grad_batches
    return epochs > views and batches > views * trainer.fit_loop.max_batches


def identity(
    task: Any,
    trainer: Trainer,
    datamodule: ImageDataModule,
    *,
    split: str,
    kind: str,
    view: int | None = None,
) -> dict[str, Any]:
    """All that the numbers of a split, or of an augmented view of it, depend on, in plain types."""
    backbone, protocol, reads = task.backbone, datamodule.protocol(), kept_fields(task)
    kept = pass_of(task)
    return {
        "backbone": {key: value for key, value in backbone.facts.items() if key != "weights"},
        "interpolation": backbone.interpolation,
        "levels": list(backbone.levels) if "levels" in reads else [],
        "layers": describe(backbone.layer_summaries) if "layers" in reads else None,
        "reads": sorted(reads),
        "adapter": kept.prefix or type(task.adapter).__qualname__,
        "inputs": kept.key(),
        "data": {key: value for key, value in protocol.items() if key not in _CHOICE},
        "split": [protocol["official_split"][split], protocol["sha256"][split]],
        "precision": str(trainer.precision),
        "dtype": kind,
        **({} if view is None else {"view": [datamodule.augment, protocol["seed"], view]}),
        "float32": torch.get_float32_matmul_precision(),  # TF32 rounds as bfloat16 does
        "timm": metadata.version("timm"),
        "kora": __version__,
    }
