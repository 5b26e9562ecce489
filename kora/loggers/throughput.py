"""Images a second in training and evaluation."""

from __future__ import annotations

import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

__all__ = ["Throughput", "images_in"]


def images_in(batch: Any) -> int:
    """How many images a batch is of, also where something else stands in for them."""
    return len(batch["image"] if "image" in batch else next(iter(batch.values())))


class Throughput(Callback):
    """Counts images and seconds; training is without the validation in it, loading is included.

    Counted since this process began: a resumed run does not know how fast the first part was.
    """

    def __init__(self) -> None:
        self._images: dict[str, int] = {}
        self._seconds: dict[str, float] = {}
        self._since = 0.0
        self._processes = 1

    def rates(self) -> dict[str, float]:
        """Images a second of all processes, by `train`, `val` and `test`; what did not run is out.

        Each process counts its own images, and all have about as many.
        """
        return {
            phase: self._processes * images / self._seconds[phase]
            for phase, images in self._images.items()
            if self._seconds.get(phase)
        }

    def _begin(self) -> None:
        self._since = time.perf_counter()

    def _end(self, phase: str) -> None:
        now = time.perf_counter()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._since
        self._since = now

    def _count(self, phase: str, batch: Any) -> None:
        self._images[phase] = self._images.get(phase, 0) + images_in(batch)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note the number of processes."""
        self._processes = trainer.world_size

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of training."""
        self._begin()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Count its images."""
        self._count("train", args[2])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop it."""
        self._end("train")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of training while validation runs."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._end("train")
        self._begin()

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Count the images of validation."""
        if not trainer.sanity_checking:
            self._count("val", args[2])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of validation, before pictures are drawn of it."""
        if not trainer.sanity_checking:
            self._end("val")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the clock of training."""
        self._begin()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the test."""
        self._begin()

    def on_test_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Count the images of the test."""
        self._count("test", args[2])

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop it, before what it found is gathered and drawn."""
        self._end("test")
