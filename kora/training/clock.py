"""The clock of a run: how long each phase took, and how many images it saw."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

__all__ = ["RunClock"]

_OF_FIT = ("train", "val", "between")


class RunClock(Callback):
    """Seconds and images of `train`, `val` and `test`, in this process.

    Training time includes loading, but not validation. `between` is the rest of a fit: saving
    checkpoints and drawing pictures. The sanity check is not counted.
    The clock comes before the other callbacks: their work at the end of a phase is not in it.
    """

    def __init__(self) -> None:
        self.images: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._phase: str | None = None  # since `_since`
        self._since = 0.0
        self._restored = 0.0  # seconds of the fit in the checkpoint, which a test loads as well
        self._before_resume = 0.0
        self._processes = 1

    def seconds(self) -> dict[str, float]:
        """Seconds of `fit`, with validations and the time before a resume, and of `test`.

        A phase that did not run is left out.
        """
        ran = "between" in self._seconds or self._before_resume
        fit = {"fit": self._fit_seconds()} if ran else {}
        return fit | ({"test": self._seconds["test"]} if "test" in self._seconds else {})

    def rates(self) -> dict[str, float]:
        """Images a second of all processes in `train`, `val` and `test`, for those that ran.

        Each process counts its own images, and all have about as many. A resumed run counts from
        the resume on.
        """
        return {
            phase: self._processes * images / self._seconds[phase]
            for phase, images in self.images.items()
            if self._seconds[phase]
        }

    def _enter(self, phase: str | None) -> None:
        """End the current phase, and begin another one or none."""
        now = time.perf_counter()
        if self._phase is not None:
            self._seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now

    def _fit_seconds(self) -> float:
        return self._before_resume + sum(self._seconds[phase] for phase in _OF_FIT)

    def _count(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        """Count the images of a batch, or the cached features in their place."""
        if self._phase is not None:
            rows = batch["image"] if "image" in batch else next(iter(batch.values()))
            self.images[self._phase] += len(rows)

    # -- the state -----------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """The key of the seconds in checkpoints; it has not changed since the first version."""
        return "RunRecord"

    def state_dict(self) -> dict[str, Any]:
        self._enter(self._phase)
        return {"fit_seconds": self._fit_seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict["fit_seconds"]

    # -- phases --------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note the number of processes."""
        self._processes = trainer.world_size

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The fit begins, or resumes."""
        self._before_resume = self._restored
        self._enter("between")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training begins."""
        self._enter("train")

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Training continues after a validation in mid-epoch."""
        if self._phase == "between":
            self._enter("train")

    on_train_batch_end: Any = _count
    on_validation_batch_end: Any = _count
    on_test_batch_end: Any = _count

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training has ended for now."""
        self._enter("between")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The fit, or a test, has ended."""
        self._enter(None)

    on_test_end = on_train_end

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the seconds of a fit that had been over before it was resumed."""
        if "between" not in self._seconds:
            self._before_resume = self._restored

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation begins."""
        if not trainer.sanity_checking:
            self._enter("val")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation has ended."""
        if not trainer.sanity_checking:
            self._enter("between" if trainer.state.fn == "fit" else None)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The test begins."""
        self._enter("test")
