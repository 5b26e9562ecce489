"""Runs of `kora fit` that can train as one batched fit on cached features, up to its first step.

Shapes: S runs, V validations.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from kora.backbone.frozen_inputs import Inputs
from kora.runs.config import flat
from kora.tasks import ClassificationTask
from kora.training.batched_fit import Setting
from kora.training.lightning_cli import KoraCLI, parse

__all__ = [
    "RATES",
    "RATES_AND_SEED",
    "Alike",
    "Best",
    "CannotError",
    "Instead",
    "UpToItsFirstStep",
    "alike",
]

_LR, _DECAY, _HEAD_LR = "model.optimizer.lr", "model.optimizer.weight_decay", "model.head_lr"
#: What runs of a batched fit may differ in.
RATES = (_LR, _DECAY, _HEAD_LR)
RATES_AND_SEED = (*RATES, "seed_everything")
#: What a batched fit does as `kora fit` does it; any other value needs that.
_AS_USUAL: dict[str, Sequence[Any]] = {
    "model.class_path": ["kora.tasks.ClassificationTask"],
    "model.optimizer.class_path": ["torch.optim.AdamW"],
    "model.optimizer.amsgrad": [None, False],
    "model.optimizer.maximize": [None, False],
    "model.optimizer.eps": [None, 1e-8],
    "model.optimizer.betas": [None, [0.9, 0.999], (0.9, 0.999)],
    "model.adapter_from": [None],
    "model.adapter_trainable": [True],
    "model.compile": [False],
    "source": [None],
    "trainer.strategy": ["auto"],
    "trainer.num_nodes": [1],
    "trainer.devices": [1, "1", "auto"],
    "trainer.precision": [None, "32-true", "bf16-mixed"],
    "trainer.accumulate_grad_batches": [1],
    "trainer.gradient_clip_val": [None],
    "trainer.max_steps": [-1],
    "trainer.max_time": [None],
    "trainer.limit_train_batches": [None, 1.0],
    "trainer.overfit_batches": [None, 0, 0.0],
    "trainer.limit_val_batches": [None, 1.0],
    "trainer.val_check_interval": [None, 1.0],
}
_EARLY_STOP = "lightning.pytorch.callbacks.EarlyStopping"
#: The same for an early stop, by its patience alone; all metrics of classification are rates.
_STOP_AS_USUAL: dict[str, Sequence[Any]] = {
    "mode": ["max"],
    "min_delta": [None, 0.0],
    "stopping_threshold": [None],
    "divergence_threshold": [None],
    "check_on_train_epoch_end": [None, False],
}


class CannotError(ValueError):
    """The runs cannot train together; says why, as the end of a sentence."""


class Alike(NamedTuple):
    """What runs that can train together have of their own, and in common.

    Args:
        resolved: The config of each.
        settings: Their learning rates, weight decays and dropouts.
        dropouts: Keys of the dropouts in which they differ.
        patience: Validations without a gain after which a run ends.
    """

    resolved: list[dict[str, Any]]
    settings: list[Setting]
    dropouts: list[str]
    patience: float


def alike(
    rows: Sequence[Sequence[str]], monitor: str, *, may_differ: Sequence[str] = RATES,
    usual: Mapping[str, Sequence[Any]] | None = None,
) -> Alike:  # fmt: skip
    """Compare runs, by the options of `kora fit` of each.

    Args:
        rows: Options of each run.
        monitor: The metric by which they are judged and stopped.
        may_differ: Keys in which they may differ, besides those of dropouts.
        usual: More keys, each with the values that a batched fit can do.

    Raises:
        CannotError: They differ in more, or do what a batched fit does not.
    """
    resolved = [parse(["fit", *row]).resolved() for row in rows]
    configs = [flat(one) for one in resolved]
    first = configs[0]
    patience = _patience(resolved[0]["trainer"].get("callbacks") or [], monitor)
    for key, values in {**_AS_USUAL, **(usual or {})}.items():
        value = first.get(key)
        # By type as well: for Lightning, 1 is one batch, and 1.0 is all of them.
        same = any(type(value) is type(one) and value == one for one in values)
        if not same and not (value in ([], {}) and None in values):
            raise CannotError(f"{key} is {value!r}")
    if first["trainer.accelerator"] != "cpu" and torch.cuda.device_count() > 1:
        raise CannotError("trainer.devices may be several GPUs")
    keys = dict.fromkeys(key for one in configs for key in [*first, *one])
    differ = [key for key in keys if any(one.get(key) != first.get(key) for one in configs)]
    dropouts = [key for key in differ if key.endswith("dropout")]
    for key in differ:
        if key not in (*may_differ, *dropouts):
            raise CannotError(f"they differ in {key}")
    return Alike(resolved, [_setting(one, dropouts) for one in configs], dropouts, patience)


def _patience(callbacks: Any, monitor: str) -> float:
    """Validations without a gain after which a run ends, by the early stop in its config."""
    patience = math.inf
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        options = callback.get("init_args", {})
        usual = all(options.get(key) in values for key, values in _STOP_AS_USUAL.items())
        if callback["class_path"] != _EARLY_STOP or not usual:
            raise CannotError(f"trainer.callbacks has {callback}")
        if options["monitor"] != monitor:
            raise CannotError(f"they stop by {options['monitor']}")
        patience = min(patience, options["patience"])
    return patience


def _setting(config: Mapping[str, Any], dropouts: Sequence[str]) -> Setting:
    lr, head_lr = config[_LR], config.get(_HEAD_LR)
    shares = tuple(config.get(key) or 0.0 for key in dropouts)
    return Setting(lr if head_lr is None else head_lr, lr, config.get(_DECAY, 0.01), shares)


class UpToItsFirstStep(KoraCLI):
    """`kora fit` without a run folder; `instead` ends it before its first step."""

    def __init__(self, args: Sequence[str], instead: Instead) -> None:
        self._instead = instead
        super().__init__(args)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer that writes and shows nothing."""
        quiet = {
            "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
            "num_sanity_val_steps": 0, "callbacks": [self._instead],
        }  # fmt: skip
        return self.make_trainer({**self.initialised("trainer"), **kwargs, **quiet}, [])

    def run_command(self, command: str) -> None:
        """Begin the fit."""
        self.trainer.fit(self.model, datamodule=self.datamodule)

    def after_fit(self) -> None:
        """Nothing was trained here."""


class Instead(Callback):
    """Does something else in the place of a fit, on its cached features, and ends it."""

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Refuse a strategy that changes the backbone, before anything of it is kept.

        Raises:
            CannotError: It does.
        """
        if pl_module.backbone.changes:
            raise CannotError(str(pl_module.backbone.changes[0]))

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Read the tables that stand for the images.

        Raises:
            CannotError: There are none, or the run does not measure what it is judged by.
        """
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        kept = {one.split: one.table for one in pl_module.feature_cache.splits}
        if set(kept) != {"train", "val"} or data.augment != "none":
            raise CannotError("their features are not cached")
        inputs, labels = {}, {}
        for split, table in kept.items():
            inputs[split] = self.read(table, pl_module.device)
            labels[split] = torch.from_numpy(data.labels(split)).to(pl_module.device)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Lightning waits for a step; none comes
        self.train(trainer, pl_module, inputs, labels)
        trainer.should_stop = True

    def read(self, table: Any, device: torch.device) -> Inputs:
        """All rows of a table."""
        found: Inputs = table.layout.unpack(table.read(range(table.layout.rows)).to(device))
        return found

    def train(
        self, trainer: Trainer, task: ClassificationTask, inputs: Mapping[str, Inputs],
        labels: Mapping[str, Tensor],
    ) -> None:  # fmt: skip
        """Called at the first step, with features and labels of `train` and `val`."""
        raise NotImplementedError


class Best:
    """The best score of each of S runs, until `patience` validations in turn were no gain."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self.scores_S: Tensor | None = None
        self._without_S: Tensor | None = None

    def add(self, scores_S: Tensor) -> tuple[Tensor, Tensor]:
        """Take the scores of a validation; (S,) which gained by it, and which go on after it."""
        if self.scores_S is None:
            self.scores_S = torch.full_like(scores_S, -math.inf)
            self._without_S = torch.zeros_like(scores_S)
        assert self._without_S is not None
        gained_S = (scores_S > self.scores_S) & (self._without_S < self._patience)
        self.scores_S = torch.where(gained_S, scores_S, self.scores_S)
        self._without_S = torch.where(gained_S, 0, self._without_S + 1)
        return gained_S, self._without_S < self._patience
