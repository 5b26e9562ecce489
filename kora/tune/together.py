"""Trials of a search as one batched fit on cached features: the process that trains them."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from kora.backbone.frozen_inputs import Inputs
from kora.runs.config import flat
from kora.runs.durable import write_text
from kora.tasks import ClassificationTask
from kora.training.batched_fit import Setting, Trained, fit_together, fits_at_once
from kora.training.lightning_cli import KoraCLI, parse
from kora.training.parser import remembering
from kora.training.progress import without_noise
from kora.tune.batch import ended_of

__all__ = ["train_list"]

_LR, _DECAY, _HEAD_LR = "model.optimizer.lr", "model.optimizer.weight_decay", "model.head_lr"
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
#: Each stands for the probability of one dropout. Exact in binary, and nobody sets them.
_STAND_INS = [(2 * at + 1) / 2**20 for at in range(64)]


class CannotError(ValueError):
    """The trials cannot train together; says why, as the end of a sentence."""


def train_list(path: Path) -> None:
    """Train the trials of a list together; writes their scores, or why not, beside the list."""
    asked = json.loads(path.read_text(encoding="utf-8"))
    began = time.monotonic()
    try:
        with remembering():
            of_seeds = [
                _scores(rows, asked["metric"]) for rows in zip(*asked["trials"], strict=True)
            ]
    except CannotError as error:
        answer: dict[str, Any] = {"why": str(error)}
    else:
        scores = [
            math.fsum(values) / len(values) if None not in values else None
            for values in zip(*of_seeds, strict=True)
        ]
        answer = {"scores": scores, "seconds": time.monotonic() - began}
    write_text(ended_of(path), json.dumps(answer))


def _scores(rows: Sequence[Sequence[str]], metric: str) -> list[float | None]:
    """The best score in validation of each trial, all with one seed; None if it is not finite."""
    resolved = [parse(["fit", *row]).resolved() for row in rows]
    configs = [flat(one) for one in resolved]
    first = configs[0]
    patience = _patience(resolved[0]["trainer"].get("callbacks") or [], metric)
    for key, usual in _AS_USUAL.items():
        value = first.get(key)
        # By type as well: for Lightning, 1 is one batch, and 1.0 is all of them.
        same = any(type(value) is type(one) and value == one for one in usual)
        if not same and not (value in ([], {}) and None in usual):
            raise CannotError(f"{key} is {value!r}")
    if first["trainer.accelerator"] != "cpu" and torch.cuda.device_count() > 1:
        raise CannotError("trainer.devices may be several GPUs")
    keys = dict.fromkeys(key for one in configs for key in [*first, *one])
    differ = [key for key in keys if any(one.get(key) != first.get(key) for one in configs)]
    dropouts = [key for key in differ if key.endswith("dropout")]
    for key in differ:
        if key not in (_LR, _DECAY, _HEAD_LR, *dropouts):
            raise CannotError(f"they differ in {key}")
    settings = [_setting(one, dropouts) for one in configs]
    stand_ins = _STAND_INS[: len(dropouts)]
    typed = [f"--{key}={stand_in}" for key, stand_in in zip(dropouts, stand_ins, strict=True)]
    instead = _Instead(settings, stand_ins, metric, patience)

    class Together(KoraCLI):
        """`kora fit` of the first trial up to its first step, without a run folder."""

        def instantiate_trainer(self, **kwargs: Any) -> Trainer:
            quiet = {
                "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
                "num_sanity_val_steps": 0, "callbacks": [instead],
            }  # fmt: skip
            return self.make_trainer({**self.initialised("trainer"), **kwargs, **quiet}, [])

        def run_command(self, command: str) -> None:
            self.trainer.fit(self.model, datamodule=self.datamodule)

        def after_fit(self) -> None:
            pass

    with without_noise():
        Together(["fit", *rows[0], *typed])
    return instead.scores


def _patience(callbacks: Any, metric: str) -> float:
    """Validations without a gain after which a trial ends, by the early stop in its config."""
    patience = math.inf
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        options = callback.get("init_args", {})
        usual = all(options.get(key) in values for key, values in _STOP_AS_USUAL.items())
        if callback["class_path"] != _EARLY_STOP or not usual:
            raise CannotError(f"trainer.callbacks has {callback}")
        if options["monitor"] != metric.removeprefix("best_"):
            raise CannotError(f"they stop by {options['monitor']}")
        patience = min(patience, options["patience"])
    return patience


def _setting(config: Mapping[str, Any], dropouts: Sequence[str]) -> Setting:
    lr, head_lr = config[_LR], config.get(_HEAD_LR)
    shares = tuple(config.get(key) or 0.0 for key in dropouts)
    return Setting(lr if head_lr is None else head_lr, lr, config.get(_DECAY, 0.01), shares)


class _Instead(Callback):
    """Trains all settings in the place of a fit, and ends it."""

    def __init__(
        self,
        settings: Sequence[Setting],
        stand_ins: Sequence[float],
        metric: str,
        patience: float,
    ) -> None:
        self.settings, self.stand_ins, self.patience = settings, stand_ins, patience
        self.metric = metric.removeprefix("best_val/")
        self.scores: list[float | None] = []

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Refuse a strategy that changes the backbone, before anything of it is kept."""
        if pl_module.backbone.changes:
            raise CannotError(str(pl_module.backbone.changes[0]))

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Train on the tables that stand for the images."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        kept = {one.split: one.table for one in pl_module.feature_cache.splits}
        if set(kept) != {"train", "val"} or data.augment != "none":
            raise CannotError("their features are not cached")
        if self.metric not in (name.removeprefix("val/") for name in pl_module.val_metrics):
            raise CannotError(f"they are judged by {self.metric}")
        inputs, labels = {}, {}
        for split, table in kept.items():
            rows = table.read(range(table.layout.rows)).to(pl_module.device)
            inputs[split] = table.layout.unpack(rows)
            labels[split] = torch.from_numpy(data.labels(split)).to(pl_module.device)
        at_once = fits_at_once(pl_module)
        for first in range(0, len(self.settings), at_once):
            some = self.settings[first : first + at_once]
            self.scores += self._scores(trainer, pl_module, inputs, labels, some)
        trainer.should_stop = True

    def _scores(
        self,
        trainer: Trainer,
        task: ClassificationTask,
        inputs: Mapping[str, Inputs],
        labels: Mapping[str, Tensor],
        settings: Sequence[Setting],
    ) -> list[float | None]:
        """Train with these settings; the best validation of each, None if it is not finite."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        every = trainer.check_val_every_n_epoch or 1
        found: list[Tensor] = []

        def judge(epoch: int, trained: Trained, losses_S: Tensor) -> None:
            if (epoch + 1) % every:
                return
            with trainer.precision_plugin.forward_context():
                logits_SnK = trained.logits(task, inputs["val"]).float()
            found.append(self._judged(task, logits_SnK, labels["val"]))

        assert trainer.max_epochs is not None
        try:
            trained = fit_together(
                task, inputs["train"], labels["train"], settings,
                epochs=trainer.max_epochs, batch_size=data.batch_size, seed=data.resolved_seed(),
                stand_ins=self.stand_ins, autocast=trainer.precision_plugin.forward_context,
                after_epoch=judge,
            )  # fmt: skip
        except ValueError as error:  # a regulariser, or a dropout of its own
            raise CannotError(str(error)) from error
        if not found:
            raise CannotError("no epoch validates")
        sign = 1 if task.monitor[1] == "max" else -1
        best = sign * _best(sign * torch.stack(found), self.patience)
        finite = torch.stack([
            tensor.flatten(1).isfinite().all(dim=1) for tensor in trained.tensors.values()
        ]).all(dim=0)  # fmt: skip
        return [float(score) if good else None for score, good in zip(best, finite, strict=True)]

    def _judged(self, task: ClassificationTask, logits_SnK: Tensor, labels: Tensor) -> Tensor:
        """(S,), the metric of each setting."""
        metric = copy.deepcopy(task.val_metrics[self.metric])
        scores = []
        for logits_nK in logits_SnK:
            metric.reset()
            metric.update(logits_nK, labels)
            scores.append(metric.compute())
        return torch.stack(scores)


def _best(scores_VS: Tensor, patience: float) -> Tensor:
    """(S,), the best of V validations in turn, until `patience` of them were no gain."""
    best = torch.full_like(scores_VS[0], -math.inf)
    without = torch.zeros_like(best)
    for scores in scores_VS:
        gained = (scores > best) & (without < patience)
        best = torch.where(gained, scores, best)
        without = torch.where(gained, 0, without + 1)
    return best
