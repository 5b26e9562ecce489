"""SIGTERM is a wish that the loops look for between two steps, agreed on by all processes.

Lightning's own handler talks to the other processes from within the signal handler, while they
are in the midst of a step, and hangs there. Its handler for SLURM's signal before the time limit
saves in the midst of a step, into the working directory, where any later run would take it up.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from typing import Any

import torch
from lightning import Trainer

from kora.lightning_internals import take_signals, was_started_by_lightning

__all__ = ["TERMINATED", "Preemption"]

TERMINATED = 128 + signal.SIGTERM


class Preemption:
    """Whether this process, or another of the run, has been told to stop."""

    def __init__(self) -> None:
        self.asked = False
        self.requeue = False
        self._signal = signal.SIGTERM
        self._hangup: Any = None

    def attach(self, trainer: Trainer) -> None:
        """Take the place of Lightning's handlers, which it registers when training begins."""

        def wish(signum: int, frame: Any) -> None:
            launcher = trainer.strategy.launcher
            if not self.asked and launcher is not None:
                launcher.kill(signum)  # to the processes it started
            self.asked, self._signal = True, signal.Signals(signum)

        def requeue(signum: int, frame: Any) -> None:
            self.asked = self.requeue = True

        # The terminal was closed; under nohup it is ignored, and stays so.
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        ):
            self._hangup = wish
            signal.signal(signal.SIGHUP, wish)
        take_signals(trainer, sigterm=wish, slurm=requeue)

    def detach(self) -> None:
        """Give back what Lightning does not."""
        if self._hangup is not None and signal.getsignal(signal.SIGHUP) is self._hangup:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)

    def agree(self, trainer: Trainer, *, due: bool) -> tuple[bool, bool]:
        """Whether any process is to stop, and whether any finds a checkpoint due."""
        if trainer.world_size == 1:
            return self.asked, due
        wishes = torch.tensor(
            [self.asked, due], dtype=torch.int, device=trainer.strategy.root_device
        )
        torch.distributed.all_reduce(wishes, torch.distributed.ReduceOp.MAX)
        stop, save = wishes.tolist()
        return bool(stop), bool(save)

    def exit_code(self, trainer: Trainer) -> int:
        """143; 0 of a process that Lightning started, as it would kill the others for 143."""
        return 0 if was_started_by_lightning(trainer) and not trainer.is_global_zero else TERMINATED

    def end(self, trainer: Trainer) -> str:
        """Put the job back into SLURM's queue where its signal came; why the run stops."""
        if not self.requeue:
            return f"stopped by {self._signal.name}"
        array, job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ["SLURM_JOB_ID"]
        name = job if array is None else f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        if not trainer.is_global_zero:
            return ""
        try:
            done = subprocess.run(["scontrol", "requeue", name], check=False).returncode
        except OSError as error:
            return f"stopped by SLURM's signal; job {name} is not queued again ({error})"
        if done:
            return f"stopped by SLURM's signal; job {name} is not queued again (scontrol: {done})"
        return f"stopped by SLURM's signal; job {name} is queued again"
