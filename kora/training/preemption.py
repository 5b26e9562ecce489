"""On SIGTERM, the processes of a run agree to stop between two steps.

Lightning's own handler talks to the other processes from within the signal handler, while they
are in the middle of a step, and hangs. Its handler for SLURM's signal before the time limit saves
in the middle of a step, into the working directory, where any later run would load the file.
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
        """Replace Lightning's handlers, which it registers when training begins."""

        def stop(signum: int, frame: Any) -> None:
            launcher = trainer.strategy.launcher
            if not self.asked and launcher is not None:
                launcher.kill(signum)  # to the processes it started
            self.asked, self._signal = True, signal.Signals(signum)

        def requeue(signum: int, frame: Any) -> None:
            self.asked = self.requeue = True

        # SIGHUP: the terminal was closed. Under nohup it is ignored, and stays ignored.
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        ):
            self._hangup = stop
            signal.signal(signal.SIGHUP, stop)
        take_signals(trainer, sigterm=stop, slurm=requeue)

    def detach(self) -> None:
        """Reset SIGHUP, which Lightning does not."""
        if self._hangup is not None and signal.getsignal(signal.SIGHUP) is self._hangup:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)

    def agree(self, trainer: Trainer, *, due: bool) -> tuple[bool, bool]:
        """Whether any process was told to stop, and whether a checkpoint is due on any."""
        if trainer.world_size == 1:
            return self.asked, due
        flags = torch.tensor(
            [self.asked, due, self.requeue], dtype=torch.int, device=trainer.strategy.root_device
        )
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        stop, save, self.requeue = map(bool, flags.tolist())
        return stop, save

    def exit_code(self, trainer: Trainer) -> int:
        """143; but 0 for a process that Lightning started: it would kill the others for 143."""
        return 0 if was_started_by_lightning(trainer) and not trainer.is_global_zero else TERMINATED

    def end(self, trainer: Trainer) -> str:
        """Requeue the job if SLURM's signal came; return why the run stops."""
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
