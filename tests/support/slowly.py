"""Callbacks of tests: slow runs, steps noted, processes told, and no test."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class Slowly(Callback):
    """From the second step on a second each, or what is left of it when there is a file `hurry`."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        end = time.monotonic() + (1 if trainer.global_step else 0)
        while time.monotonic() < end and not Path("hurry").exists():
            time.sleep(0.05)


class Note(Callback):
    """Notes each step in steps.txt of the working directory, outside of any logger, at once."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        with Path("steps.txt").open("a") as file:
            file.write(f"{trainer.global_step}\n")


class Threads(Callback):
    """Prints how many threads torch has, and how loaders begin their processes."""

    def on_train_start(self, trainer: Trainer, *args: Any) -> None:
        print(f"threads: {torch.get_num_threads()}", flush=True)
        print(f"loaders: {multiprocessing.get_start_method()}", flush=True)


class NoTest(Callback):
    """Fails as soon as a test begins to be prepared."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert stage != "test", "the test set was to be left alone"
