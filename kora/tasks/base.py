"""What every task shares: building, what trains, the optimiser, small and verified checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from kora import __version__
from kora.adapters import LinearProbe, Strategy, describe
from kora.adapters.checkpoint_files import require_record
from kora.adapters.folder import (
    check_keys,
    check_same_adapter,
    describe_whole,
    load_adapter,
    recall_adapter,
    without_prefix,
)
from kora.backbone.frozen_inputs import Inputs
from kora.backbone.vit import Backbone, Features
from kora.feature_cache.cache import KEPT, CacheOption, FeatureCache, Kind
from kora.feature_cache.rules import head_reads, note_changes, pass_of
from kora.tasks.callbacks import TASK_CALLBACKS
from kora.tasks.optim import Schedule, fuse_on_cpu, parameter_groups, schedule_factor
from kora.tasks.ranks import refuse_sharding

__all__ = ["AdapterTask"]

_OWN = "the values of its weights"


def _adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-3, weight_decay=1e-4)


class AdapterTask(LightningModule):
    """A frozen backbone, a strategy and a head.

    Parameters exist only after `build`, which Lightning calls through `configure_model` once the
    data module knows the number of outputs.

    Args:
        backbone: The frozen vision transformer.
        adapter: The strategy; None is a linear probe.
        optimizer: Any torch or timm optimiser; it is given the trainable tensors only.
        head_lr: Learning rate of the head; None is that of the optimiser.
        schedule: `cosine` to zero, or `constant`, after the warm-up.
        warmup_fraction: Share of all steps in which the learning rate rises linearly.
        adapter_from: Folder of an adapter to start from (its head is not taken).
        adapter_trainable: False freezes the adapter: only the head trains.
        compile: Compile the module with torch.compile.
        feature_cache: Keep the frozen features that the adapter reads from epoch to epoch: True,
            False, or `auto`: if possible and faster (docs/explanation/feature-cache.md).
        feature_cache_dtype: float32; float16 or bfloat16 take half the space, and round.
        feature_cache_folder: None is `$KORA_CACHE/features`, else `~/.cache/kora/features`.

    Raises:
        ValueError: For a warm-up outside [0, 1), or an unknown schedule or kind of cache.
    """

    #: Quantity that chooses the best checkpoint, and whether `max` or `min` is best.
    monitor: tuple[str, str]
    #: Rules of the evaluation, a dataclass with the field `split`; None: the metrics have none.
    protocol: Any = None
    #: Whether checkpoints record the head: for heads with settings that no tensor shows.
    records_head = False

    def __init__(
        self,
        backbone: Backbone,
        adapter: Strategy | None = None,
        *,
        optimizer: OptimizerCallable = _adamw,
        head_lr: float | None = None,
        schedule: Schedule = "cosine",
        warmup_fraction: float = 0.1,
        adapter_from: str | None = None,
        adapter_trainable: bool = True,
        compile: bool = False,
        feature_cache: CacheOption = "auto",
        feature_cache_dtype: Kind = "float32",
        feature_cache_folder: str | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= warmup_fraction < 1:
            raise ValueError(f"warmup_fraction={warmup_fraction}, expected a share in [0, 1).")
        if schedule not in get_args(Schedule):
            raise ValueError(
                f"schedule='{schedule}', expected one of {', '.join(get_args(Schedule))}."
            )
        if head_lr is not None and head_lr <= 0:
            raise ValueError(f"head_lr={head_lr}, expected a number above 0, or null.")
        self.backbone = backbone
        self.adapter = LinearProbe() if adapter is None else adapter
        self.head: nn.Module | None = None
        self.optimizer = optimizer
        self.head_lr = head_lr
        self.schedule: Schedule = schedule
        self.warmup_fraction = warmup_fraction
        self.adapter_from = adapter_from
        self.adapter_trainable = adapter_trainable
        self.compile_module = compile
        self.feature_cache = FeatureCache(feature_cache, feature_cache_dtype, feature_cache_folder)
        self.source: dict[str, Any] | None = None
        #: Checkpoint that will be loaded, for an adapter that is built from other files.
        self.checkpoint: str | None = None
        self._looked_for_idle = False
        #: Optimiser steps that trained the weights of the checkpoint that was loaded last.
        self.loaded_step: int | None = None
        #: Outcomes of the images that this process tested: batches of columns (B,) with `index`.
        self.tested: list[dict[str, Tensor]] = []
        #: Metrics of the constants, predictions that see no image, by the name of each.
        self.constant_metrics = nn.ModuleDict()
        self._constants_known = False

    @property
    def label(self) -> str:
        """Name of the strategy in folders and tables."""
        return self.adapter.label

    def build_head(self) -> nn.Module:
        """The head for this backbone and data; each task has its own."""
        raise NotImplementedError(f"{type(self).__name__} has no build_head.")

    # -- building ------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Lightning's hook: build once, compile if asked."""
        refuse_sharding(self._trainer)
        if self.head is None:
            self.build()
            if self.compile_module:
                self.compile()

    def build(self) -> None:
        """Attach the adapter, make the head, load a source adapter, and freeze the rest."""
        assert self.head is None, "built twice"
        self.recall_missing()
        self.adapter.attach(self.backbone)
        note_changes(self.backbone, self.adapter)
        self.head = self.build_head()
        if self.adapter.query_channels is not None and "query" not in head_reads(self):
            raise ValueError(
                f"{self.adapter.label} sends what it composed to the queries of a decoder, and "
                f"{type(self.head).__name__} has none. Use model.head "
                "kora.heads.QuerySegmentation, or another readout."
            )
        if self.adapter_from is not None:
            self.source = load_adapter(self.adapter_from, self.adapter, self.backbone)
        if not self.adapter_trainable:
            self.adapter.needs_backbone_grad = False
        self.requires_grad_(False)
        for parameter in self.trainables().values():
            parameter.requires_grad_(True)
        self.train(self.training)

    def recall_missing(self) -> None:
        """If adapters that this one reads are missing, take them from the file that is loaded."""
        file = self.checkpoint or self.adapter_from
        recalled = [] if file is None else recall_adapter(file, self.adapter)
        if recalled:
            rank_zero_warn(
                f"{self.adapter.label}: there is no adapter at {', '.join(recalled)}; those in "
                f"{file} are used."
            )

    def trainables(self) -> dict[str, nn.Parameter]:
        """Everything that trains, by name: `adapter.*` and `head.*`."""
        assert self.head is not None, "build() comes first"
        adapter = self.adapter.trainable() if self.adapter_trainable else ()
        named = {f"adapter.{name}": parameter for name, parameter in adapter}
        of_head = self.head.named_parameters()
        return named | {f"head.{name}": parameter for name, parameter in of_head}

    def train(self, mode: bool = True) -> AdapterTask:
        """Set the mode; a frozen adapter, and a backbone that it thawed, stay in eval mode."""
        super().train(mode)
        if not self.adapter_trainable:
            self.adapter.train(False)
            self.backbone.train(False)
        return self

    def inputs(self, batch: Mapping[str, Tensor]) -> Tensor | Inputs:
        """What `forward` takes from a batch: its images, or their cached features."""
        return self.feature_cache.unpack(batch[KEPT]) if KEPT in batch else batch["image"]

    def cached_splits(self) -> tuple[str, ...]:
        """The splits whose images a fit reads only through `inputs`; a task overrides this."""
        return ()

    def features(self, images: Tensor | Inputs) -> Features:
        """Adapted features of uint8 (or [0, 1]) images (B, 3, H, W), or of cached features."""
        if isinstance(images, Tensor):
            features: Features = self.adapter(self.backbone, images)
            return features
        return pass_of(self).features(images)

    def forward(self, images: Tensor | Inputs) -> Tensor:
        """The head's output for images (B, 3, H, W), or for their cached features."""
        assert self.head is not None, "build() comes first"
        output: Tensor = self.head(self.features(images))
        return output

    def answer(self, output: Tensor, size: tuple[int, int]) -> Tensor:
        """What a user gets from the head's output for images of `size`; classes: the logits."""
        return output

    def with_penalty(self, loss: Tensor) -> Tensor:
        """The loss to minimise, with the strategy's regulariser, logged as `train/penalty`."""
        penalty = self.adapter.penalty() if self.adapter_trainable else None
        if penalty is None:
            return loss
        self.log("train/penalty", penalty, on_step=True, on_epoch=False)
        return loss + penalty

    def on_after_backward(self) -> None:
        """After the first step, report trainable tensors that do not influence the loss.

        Raises:
            ValueError: If data-parallel training does not allow them.
        """
        if self._looked_for_idle:
            return
        self._looked_for_idle = True
        mine = self.trainables()
        idle = [name for name, parameter in mine.items() if parameter.grad is None]
        if idle:
            numbers = sum(mine[name].numel() for name in idle)
            more = f" and {len(idle) - 2} more tensors" if len(idle) > 2 else ""
            text = (
                f"{self.adapter.label}: {numbers:,} trainable numbers do not influence the loss "
                f"and stay as they are ({', '.join(idle[:2])}{more}). {self.adapter.without_effect}"
            )
            module = self.trainer.strategy.model
            if isinstance(module, DistributedDataParallel) and not module.find_unused_parameters:
                raise ValueError(  # it would wait for their gradients, and stop at the next step
                    f"{text} Data-parallel training as it is set up here does not allow that; to "
                    "train it all the same, use trainer.strategy: ddp_find_unused_parameters_true."
                )
            rank_zero_warn(text)

    # -- evaluation ----------------------------------------------------------------------------

    def on_validation_start(self) -> None:
        """Score the constants as well in the command `validate`, and not while it trains."""
        self._constants_known = False
        if self.trainer.state.fn == "validate":
            self._begin_constants()

    def on_test_start(self) -> None:
        """Score the constants as well as the model."""
        self._begin_constants()

    def _begin_constants(self) -> None:
        for metrics in self.constant_metrics.values():
            metrics.reset()  # type: ignore[operator]
        self._constants_known = self.learn_constants(self.trainer.datamodule)  # type: ignore[attr-defined]

    def learn_constants(self, datamodule: Any) -> bool:
        """Take what the constants predict from the training split; False if it cannot tell."""
        return False

    def baselines(self) -> dict[str, dict[str, float]]:
        """The scores of the constants, if they are known; call it on every process."""
        if not self._constants_known:
            return {}
        return {
            kind: {name: float(value) for name, value in metrics.compute().items()}  # type: ignore[operator]
            for kind, metrics in self.constant_metrics.items()
        }

    def evaluation(self, split: str) -> dict[str, Any]:
        """The protocol, with the name of the evaluated split; empty without one.

        Raises:
            ValueError: If the protocol is for another split.
        """
        if self.protocol is None:
            return {}
        if split != "val" and self.protocol.split not in (None, split):
            raise ValueError(
                f"model.protocol.split is '{self.protocol.split}', and this data evaluates on "
                f"'{split}'. Use the data that the protocol means, or leave the split out."
            )
        found: dict[str, Any] = replace(self.protocol, split=split).to_dict()
        return found

    # -- optimiser -----------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """The optimiser over what trains, with warm-up and schedule by step."""
        total = self.trainer.estimated_stepping_batches
        if math.isinf(total):
            raise ValueError(
                "The run has no end (trainer.max_epochs: -1), so warm-up and schedule have no "
                "length. Set trainer.max_epochs or trainer.max_steps."
            )
        undecayed = {f"adapter.{name}" for name in self.backbone.model.no_weight_decay()}
        groups = parameter_groups(self.trainables(), head_lr=self.head_lr, undecayed=undecayed)
        try:
            optimizer = fuse_on_cpu(self.optimizer(groups))
        except ValueError as error:
            raise ValueError(f"model.optimizer: {error}. Correct its init_args.") from error
        warmup = self.warmup_fraction
        factor = schedule_factor(self.schedule, total_steps=int(total), warmup_fraction=warmup)
        scheduler = {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def configure_callbacks(self) -> list[Callback]:
        """The callbacks of every task, except those that the trainer has already."""
        there = {type(callback) for callback in self.trainer.callbacks}  # type: ignore[attr-defined]
        return [kind() for kind in TASK_CALLBACKS if kind not in there]

    # -- checkpoints ---------------------------------------------------------------------------

    def kept_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds: the adapter and the head, never the frozen backbone."""
        assert self.head is not None, "build() comes first"
        kept = {f"adapter.{name}": tensor for name, tensor in self.adapter.tensors().items()}
        of_head = self.head.state_dict(keep_vars=True)
        return kept | {f"head.{name}": tensor for name, tensor in of_head.items()}

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Adapter and head only. (Lightning calls this on the root module without arguments.)"""
        return {name: tensor.detach() for name, tensor in self.kept_tensors().items()}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> None:
        """Load exactly these tensors.

        Raises:
            ValueError: If a key is missing, unknown or of another shape.
        """
        mine = self.kept_tensors()
        check_keys(mine, state_dict, self._checkpoint_name())
        if self.adapter.earlier_runs is not None:
            of_adapter = without_prefix(state_dict, "adapter.")
            self.adapter.earlier_runs.verify(of_adapter, self._checkpoint_name())
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(state_dict[name])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record the hash of the frozen weights, which the file does not hold, and the head."""
        checkpoint["kora"] = {
            "kora_version": __version__,
            "backbone": self.backbone.name,
            "weights": str(self.backbone.weights),
            "sha256": self.backbone.sha256,
            "normalisation": self.backbone.normalisation,
            "adapter": describe_whole(self.adapter),
            "source": self.source_record(),
            **({"head": describe(self.head)} if self.records_head else {}),
        }

    def source_record(self) -> dict[str, Any] | None:
        """The adapter that this one started from, for records; None without one."""
        if self.source is None:
            return None
        return {key: self.source.get(key) for key in ("folder", "experiment", "adapter")}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other frozen weights, even if its tensors would fit.

        Raises:
            ValueError: If strategy or head, their arguments, or the backbone's weights or scale
                differ.
        """
        name = self._checkpoint_name()
        record = require_record(checkpoint, name)
        check_same_adapter(self.adapter, record["adapter"], name)
        if record["sha256"] != self.backbone.sha256:
            raise ValueError(
                f"{name} belongs to the backbone '{record['backbone']}' with weights "
                f"{record['sha256'][:12]}; this run has '{self.backbone.name}' with "
                f"{self.backbone.sha256[:12]}. Set model.backbone as in the config.yaml of its run."
            )
        theirs = record.get("normalisation", {})  # not in the first checkpoints
        if theirs != self.backbone.normalisation:
            raise ValueError(
                f"{name} belongs to images normalised with {theirs or _OWN}; this run has "
                f"{self.backbone.normalisation or _OWN}. Set "
                "model.backbone.mean and std as in the config.yaml of its run."
            )
        head = record.get("head")
        if self.records_head and head not in (None, describe(self.head)):
            raise ValueError(
                f"{name} has the head {head}; this run has {describe(self.head)}. Make model.head "
                "equal to it."
            )
        self.loaded_step = checkpoint.get("global_step")
        if self.source is None:  # a resume reads no source: its result is in the checkpoint
            self.source = record.get("source")

    def _checkpoint_name(self) -> str:
        """Name of the file that is being loaded, for errors."""
        path = None if self._trainer is None else self._trainer.ckpt_path
        return "The checkpoint" if path is None else f"Checkpoint {path}"
