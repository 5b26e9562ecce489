"""Callbacks of the grid's tests: a run that can be stopped in time, and one that tells threads."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback


class Slowly(Callback):
    """Sleeps after each step, until there is a file `hurry` in the working directory."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if not Path("hurry").exists():
            time.sleep(0.5)


class Threads(Callback):
    """Prints how many threads torch has."""

    def on_train_start(self, trainer: Trainer, *args: Any) -> None:
        print(f"threads: {torch.get_num_threads()}", flush=True)
