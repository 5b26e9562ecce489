"""Faults for runs of their own: a callback that a config names, and the environment arms."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

import kora.training.lightning_cli  # noqa: F401  (once for all copies of this process)
from kora.cli import main
from tests.support.cli import ended, keep_none

REPOSITORY = Path(__file__).parents[2]
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
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    for name in (ARMED, "PL_GLOBAL_SEED"):
        environment.pop(name, None)
    if fault is not None:
        environment[ARMED] = fault
    return ended(folder, args, environment, folder / "out.txt")


def run(folder: Path, *args: str | Path, fault: str | None = None) -> tuple[int, str]:
    """The same in a copy of this process, which need not import everything again."""
    output = folder / "out.txt"
    child = os.fork()
    if not child:
        _become_kora(folder, [str(arg) for arg in args], fault, output)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), output.read_text()


def _become_kora(folder: Path, args: list[str], fault: str | None, output: Path) -> NoReturn:
    code = 99
    try:
        with output.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        os.chdir(folder)
        keep_none()
        os.environ.pop("PL_GLOBAL_SEED", None)
        # As a new process has them: a shell's background ignores the one, and Ray takes the other.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if fault is not None:
            os.environ[ARMED] = fault
        main(args)
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(code)
