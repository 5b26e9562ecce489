"""SIGTERM is a wish that the loops look for between two steps, agreed on by all processes.

Lightning's own handler talks to the other processes from within the signal handler, while they
are in the midst of a step, and hangs there.
"""

from __future__ import annotations

import signal
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

__all__ = ["TERMINATED", "Preemption"]

TERMINATED = 128 + signal.SIGTERM


class Preemption:
    """Whether this process, or another of the run, has been told to stop."""

    def __init__(self) -> None:
        self.asked = False

    def attach(self, trainer: Trainer) -> None:
        """Take the place of Lightning's handler, which it registers when training begins."""

        def wish(signum: int, frame: Any) -> None:
            launcher = trainer.strategy.launcher
            if not self.asked and launcher is not None:
                launcher.kill(signum)  # to the processes it started
            self.asked = True

        connector: Any = trainer._signal_connector
        connector._sigterm_notifier_fn = wish

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
        started = isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher)
        return 0 if started and not trainer.is_global_zero else TERMINATED
