"""Runs of a grid as one batched fit on cached features: the process that finishes them.

Each run goes up to its first step by itself. Then all train as one, and each tests its own best
weights and writes its own folder. Shapes: S runs, n images, K classes.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning import Trainer, seed_everything
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from kora.backbone.frozen_inputs import Inputs
from kora.console.say import say
from kora.grid.batch import ended_of
from kora.lightning_internals import count_as_fitted
from kora.runs.config import flat
from kora.runs.durable import write_text
from kora.runs.search import find_finished_run
from kora.tasks import AdapterTask, ClassificationTask
from kora.training.batched_fit import Start, Trained, fit_together, fits_at_once
from kora.training.config_lock import alone_with
from kora.training.lightning_cli import KoraCLI
from kora.training.parser import remembering
from kora.training.progress import without_noise
from kora.training.together import (
    RATES_AND_SEED,
    Alike,
    Best,
    CannotError,
    Instead,
    UpToItsFirstStep,
    alike,
)

__all__ = ["train_list"]

#: What a run of its own does otherwise.
_USUAL: dict[str, Sequence[Any]] = {
    "trainer.enable_checkpointing": [None, True],
    "trainer.fast_dev_run": [None, False],
}


class Fitted(NamedTuple):
    """A run of a batched fit.

    Args:
        tensors: Its trainables at its best validation.
        score: What it was judged by, there.
        steps: Steps up to there.
        curve: Its metrics after each epoch, with the number of steps.
        fails: Whether its loss, or a weight, was not finite.
    """

    tensors: Mapping[str, Tensor]
    score: float
    steps: int
    curve: Sequence[tuple[int, Mapping[str, float]]]
    fails: bool


def train_list(path: Path) -> None:
    """Finish the runs of a list together; writes beside the list how many, or why not."""
    rows = json.loads(path.read_text(encoding="utf-8"))["runs"]
    try:
        with remembering(), without_noise():
            answer: dict[str, Any] = {"finished": _finish(rows)}
    except CannotError as error:
        answer = {"why": str(error)}
    write_text(ended_of(path), json.dumps(answer))


def _finish(rows: Sequence[Sequence[str]]) -> int:
    monitor = ClassificationTask.monitor[0]
    found = alike(rows, monitor, may_differ=RATES_AND_SEED, usual=_USUAL)
    for key, value in flat(found.resolved[0]).items():
        if key.endswith("dropout") and value:
            raise CannotError(f"{key} is {value}, which draws other numbers for each run")
    with ExitStack() as exits:
        for config in found.resolved:
            exits.enter_context(alone_with(config, say=say))
        if any(find_finished_run(config) for config in found.resolved):
            raise CannotError("another process has finished some of them meanwhile")
        group = _Group(found)
        runs = [_Run(["fit", *row], group) for row in rows]  # the last one trains all
        finite = [(run, one) for run, one in zip(runs, group.fitted, strict=True) if not one.fails]
        for run, one in finite:
            run.finish(one, together=len(runs))
    return len(finite)


class _Run(UpToItsFirstStep):
    """A run that begins by itself, and is given what came of its fit."""

    model: AdapterTask

    def finish(self, fitted: Fitted, *, together: int) -> None:
        """Test and write the run, as `kora fit` does after its last step."""
        seed_everything(self.options.seed_everything, workers=True, verbose=False)
        self.trainer = KoraCLI.instantiate_trainer(self)
        assert self.record is not None
        steps, last = fitted.curve[-1]
        count_as_fitted(self.trainer, epochs=int(last["epoch"]) + 1, steps=steps)
        try:
            self.record.together = together
            self.record.metrics[f"best_{self.model.monitor[0]}"] = fitted.score
            with torch.no_grad():
                for name, tensor in self.model.trainables().items():
                    tensor.copy_(fitted.tensors[name])
            for logger in self.trainer.loggers:
                for steps, metrics in fitted.curve:
                    logger.log_metrics(dict(metrics), step=steps - 1)
                logger.save()
            self._steps = fitted.steps
            KoraCLI.after_fit(self)
        finally:
            if self.lock is not None:
                self.lock.release()

    def _finish(self) -> None:
        assert self.record is not None
        if self.record.tested_step is not None:
            self.record.tested_step = self._steps
        super()._finish()


class _Group(Instead):
    """Notes what each run starts with, and trains all of them in the place of the last one."""

    def __init__(self, found: Alike) -> None:
        self._settings, self._patience = found.settings, found.patience
        self._tables: dict[str, Inputs] = {}
        self._starts: list[Start] = []
        self._val: list[tuple[Inputs, Tensor]] = []
        self._first: ClassificationTask | None = None
        self.fitted: list[Fitted] = []

    def read(self, table: Any, device: torch.device) -> Inputs:
        """All rows of a table, once for the runs that share it."""
        key = str(table.folder)
        if key not in self._tables:
            self._tables[key] = super().read(table, device)
        return self._tables[key]

    def train(
        self, trainer: Trainer, task: ClassificationTask, inputs: Mapping[str, Inputs],
        labels: Mapping[str, Tensor],
    ) -> None:  # fmt: skip
        """Note the start of a run; train if it is the last one."""
        if self._first is None:
            self._first = task
        else:
            _require_equal_rest(self._first, task)
            _share_backbone(self._first, task)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        tensors = {name: it.detach().clone() for name, it in task.trainables().items()}
        start = Start(tensors, inputs["train"], labels["train"], data.resolved_seed())
        same = (one for one in self._starts if _is_equal(one, start))
        self._starts.append(next(same, start))
        self._val.append((inputs["val"], labels["val"]))
        if len(self._starts) == len(self._settings):
            self._train_all(trainer, task)

    def _train_all(self, trainer: Trainer, task: ClassificationTask) -> None:
        at_once, count = fits_at_once(task), len(self._settings)
        firsts = range(0, count, at_once)
        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
            shown = bar.add_task(f"{count} runs together", total=1)
            for number, first in enumerate(firsts):

                def moved(done: int, steps: int, before: int = number) -> None:
                    share = (before + done / steps) / len(firsts)
                    bar.update(shown, completed=share)

                which = slice(first, first + at_once)
                self.fitted += self._fit(trainer, task, which, moved)

    def _fit(
        self, trainer: Trainer, task: ClassificationTask, which: slice,
        after_step: Callable[[int, int], object],
    ) -> list[Fitted]:  # fmt: skip
        """Train some runs, and keep each as it was at its best validation."""
        starts, val = self._starts[which], self._val[which]
        settings = [
            setting._replace(start=start)
            for setting, start in zip(self._settings[which], starts, strict=True)
        ]
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        assert trainer.max_epochs is not None
        every, count = trainer.check_val_every_n_epoch or 1, len(settings)
        batches = math.ceil(len(starts[0].labels) / data.batch_size)
        inputs = [one for one, _ in val]
        best, kept, steps = Best(self._patience), dict[str, Tensor](), [0] * count
        curves: list[list[tuple[int, dict[str, float]]]] = [[] for _ in settings]
        still, fails = [True] * count, [False] * count

        def note(epoch: int, trained: Trained, losses_S: Tensor) -> None:
            done = (epoch + 1) * batches
            rows = [{"epoch": epoch, "train/loss": loss} for loss in losses_S.tolist()]
            for place, row in enumerate(rows):
                if still[place]:
                    fails[place] |= not math.isfinite(row["train/loss"])
                    curves[place].append((done, row))
            if (epoch + 1) % every:
                return
            with trainer.precision_plugin.forward_context():
                logits_SnK = trained.logits(task, inputs).float()
            for row, logits_nK, (_, labels) in zip(rows, logits_SnK, val, strict=True):
                row |= _measured(task, logits_nK, labels)
            scores_S = torch.tensor([row[task.monitor[0]] for row in rows])
            gained_S, goes_on_S = best.add(scores_S)
            for name, tensor in trained.tensors.items():
                if name not in kept:
                    kept[name] = torch.zeros_like(tensor)
                kept[name][gained_S] = tensor[gained_S]
            for place in range(count):
                still[place] = bool(goes_on_S[place])
                if gained_S[place]:
                    steps[place] = done

        try:
            fit_together(
                task, starts[0].inputs, starts[0].labels, settings,
                epochs=trainer.max_epochs, batch_size=data.batch_size, seed=0,
                autocast=trainer.precision_plugin.forward_context,
                after_step=after_step, after_epoch=note,
            )  # fmt: skip
        except ValueError as error:  # a regulariser, or other numbers of images
            raise CannotError(str(error)) from error
        if best.scores_S is None:
            raise CannotError("no epoch validates")
        finite_S = Trained(kept).are_finite()
        return [
            Fitted(
                {name: tensor[place] for name, tensor in kept.items()},
                float(best.scores_S[place]), steps[place], curves[place],
                fails[place] or not finite_S[place],
            )
            for place in range(count)
        ]  # fmt: skip


def _is_equal(one: Start, other: Start) -> bool:
    return (
        one.seed == other.seed
        and one.inputs is other.inputs
        and all(torch.equal(one.tensors[name], it) for name, it in other.tensors.items())
    )


def _rest(task: ClassificationTask) -> dict[str, Tensor]:
    """What adapter and head hold besides their trainables."""
    assert task.head is not None
    parts = (task.adapter, task.head)
    mine = {id(tensor) for tensor in task.trainables().values()}
    named = chain.from_iterable((*part.named_parameters(), *part.named_buffers()) for part in parts)
    return {name: tensor for name, tensor in named if id(tensor) not in mine}


def _require_equal_rest(first: ClassificationTask, task: ClassificationTask) -> None:
    theirs = _rest(task)
    for name, tensor in _rest(first).items():
        if not torch.equal(tensor.cpu(), theirs[name].cpu()):  # a fit that is over left its GPU
            raise CannotError(f"{name} is fixed and random, and each run has its own")


def _share_backbone(first: ClassificationTask, task: ClassificationTask) -> None:
    """Let a run have the frozen weights of the first one if they are equal, and so one copy."""
    if first.backbone.sha256 != task.backbone.sha256:  # random ones
        return
    for theirs, mine in zip(first.backbone.parameters(), task.backbone.parameters(), strict=True):
        mine.data = theirs.data


def _measured(task: ClassificationTask, logits_nK: Tensor, labels_n: Tensor) -> dict[str, float]:
    """The metrics of a validation."""
    metrics = task.val_metrics.clone()
    metrics.reset()
    metrics.update(logits_nK, labels_n)
    found = {name: float(value) for name, value in metrics.compute().items()}
    return found | {"val/loss": F.cross_entropy(logits_nK, labels_n).item()}
