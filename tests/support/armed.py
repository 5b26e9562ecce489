"""Faults for runs of their own: a callback that a config names, and the environment arms."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from tests.support.cli import REPOSITORY, ended, started

ARMED = "KORA_TEST_FAULT"
#: A run names the class below, which is not KoRA's.
TRUST = ("--trust", "tests.support.armed")


class Fault(Callback):
    """`KORA_TEST_FAULT="<what> <where> <step>"`: at this optimiser step, or the next one after it.

    What: a signal's name, `all` (SIGTERM, also to the workers of the loaders, as `timeout` and
    schedulers send it), `nan` (in a gradient), or `error`. Where: `batch_start`, `step` (before
    the backward pass), `after_backward`, `batch_end`, `epoch_end`, `validation` or `save`. A fourth
    word names the only rank that has it.
    """

    def _strike(self, trainer: Trainer, module: LightningModule, where: str) -> None:
        armed = os.environ.get(ARMED)
        if armed is None or trainer.sanity_checking:
            return
        what, place, step, *ranks = armed.split()
        if where != place or trainer.global_step < int(step):
            return
        if ranks and ranks != [str(trainer.global_rank)]:
            return
        del os.environ[ARMED]
        if what == "nan":
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            gradients[0].fill_(float("nan"))
        elif what == "error":
            raise ZeroDivisionError("the fault of the test")
        else:
            Path("struck").touch()  # when it was
            number = signal.SIGTERM if what == "all" else getattr(signal, what)
            os.kill(os.getpid(), number)
            for worker in multiprocessing.active_children() if what == "all" else ():
                os.kill(worker.pid or 0, number)

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        self._strike(trainer, module, "batch_start")

    def on_before_backward(
        self, trainer: Trainer, module: LightningModule, loss: torch.Tensor
    ) -> None:
        self._strike(trainer, module, "step")

    def on_after_backward(self, trainer: Trainer, module: LightningModule) -> None:
        self._strike(trainer, module, "after_backward")

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        self._strike(trainer, module, "batch_end")

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._strike(trainer, module, "epoch_end")

    def on_validation_batch_end(
        self, trainer: Trainer, module: LightningModule, *args: Any
    ) -> None:
        self._strike(trainer, module, "validation")

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._strike(trainer, module, "save")


def run_fresh(folder: Path, *args: str | Path, fault: str | None = None) -> tuple[int, str]:
    """Exit code (negative: a signal) and output of `kora ARGS`, by no copy of this process."""
    return ended(folder, args, _armed(fault), folder / "out.txt")


def run(folder: Path, *args: str | Path, fault: str | None = None) -> tuple[int, str]:
    """The same in a copy of this process."""
    log = folder / "out.txt"
    with started(*args, log=log, folder=folder, environment=_armed(fault)) as process:
        return process.wait(), log.read_text()


def _armed(fault: str | None) -> dict[str, str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    for name in (ARMED, "PL_GLOBAL_SEED"):
        environment.pop(name, None)
    return environment if fault is None else {**environment, ARMED: fault}
