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
from torch import Tensor

from kora.backbone.frozen_inputs import Inputs
from kora.grid.batch import ended_of
from kora.runs.durable import write_text
from kora.tasks import ClassificationTask
from kora.training.batched_fit import Setting, Trained, fit_together, fits_at_once
from kora.training.parser import remembering
from kora.training.progress import without_noise
from kora.training.together import Alike, Best, CannotError, Instead, UpToItsFirstStep, alike

__all__ = ["train_list"]

#: Each stands for the probability of one dropout. Exact in binary, and nobody sets them.
_STAND_INS = [(2 * at + 1) / 2**20 for at in range(64)]


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
    found = alike(rows, metric.removeprefix("best_"))
    stand_ins = _STAND_INS[: len(found.dropouts)]
    typed = [f"--{key}={one}" for key, one in zip(found.dropouts, stand_ins, strict=True)]
    trials = _Trials(found, stand_ins, metric.removeprefix("best_val/"))
    with without_noise():
        UpToItsFirstStep(["fit", *rows[0], *typed], trials)
    return trials.scores


class _Trials(Instead):
    """Trains all settings in the place of a fit, and notes their scores."""

    def __init__(self, found: Alike, stand_ins: Sequence[float], metric: str) -> None:
        self.settings, self.patience = found.settings, found.patience
        self.stand_ins, self.metric = stand_ins, metric
        self.scores: list[float | None] = []

    def train(
        self, trainer: Trainer, task: ClassificationTask, inputs: Mapping[str, Inputs],
        labels: Mapping[str, Tensor],
    ) -> None:  # fmt: skip
        """Train as many at once as there is room for."""
        if f"val/{self.metric}" not in list(task.val_metrics.keys()):  # with their prefix
            raise CannotError(f"they are judged by {self.metric}")
        at_once = fits_at_once(task)
        for first in range(0, len(self.settings), at_once):
            some = self.settings[first : first + at_once]
            self.scores += self._scores(trainer, task, inputs, labels, some)

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
        sign = 1 if task.monitor[1] == "max" else -1
        best = Best(self.patience)

        def judge(epoch: int, trained: Trained, losses_S: Tensor) -> None:
            if (epoch + 1) % every:
                return
            with trainer.precision_plugin.forward_context():
                logits_SnK = trained.logits(task, inputs["val"]).float()
            best.add(sign * self._judged(task, logits_SnK, labels["val"]))

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
        if best.scores_S is None:
            raise CannotError("no epoch validates")
        scores_S = sign * best.scores_S
        finite_S = trained.are_finite()
        return [
            float(score) if good else None for score, good in zip(scores_S, finite_S, strict=True)
        ]

    def _judged(self, task: ClassificationTask, logits_SnK: Tensor, labels: Tensor) -> Tensor:
        """(S,), the metric of each setting."""
        metric = copy.deepcopy(task.val_metrics[self.metric])
        scores = []
        for logits_nK in logits_SnK:
            metric.reset()
            metric.update(logits_nK, labels)
            scores.append(metric.compute())
        return torch.stack(scores)
