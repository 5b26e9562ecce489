"""The callbacks of every task, which save time and change no result."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from kora.console.say import say
from kora.tasks.merging import MergedEvaluation

__all__ = [
    "TASK_CALLBACKS",
    "FlushedDenormals",
    "KeptInputs",
    "LearningRates",
    "SlowPrecision",
    "are_flushed",
    "flushed",
    "time_over_float32",
]


class KeptInputs(Callback):
    """Replaces the images of a fit or test by cached features, and restores them afterwards.

    Another task may read the same data next, and would take these features for its own.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Fill the cache, or open it; then read what it does not replace, before clocks run."""
        pl_module.feature_cache.begin(pl_module, trainer)
        _read_ahead(trainer, "train", "val")

    def on_fit_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        """Restore the images."""
        pl_module.feature_cache.end(trainer)

    on_exception: Any = on_fit_end

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Open the table of the test images, if there is one, before data loaders start."""
        if stage == "test" and pl_module.head is not None:
            pl_module.feature_cache.begin_test(pl_module, trainer)
        if stage != "fit":  # see on_fit_start
            _read_ahead(trainer, "val" if stage == "validate" else "test")

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Restore the images of the test."""
        if stage == "test":
            pl_module.feature_cache.end(trainer)


def _read_ahead(trainer: Trainer, *splits: str) -> None:
    """Have images in memory before clocks run and the workers of loaders start."""
    datasets = getattr(trainer.datamodule, "loader_datasets", {})  # type: ignore[attr-defined]
    for split in splits:
        if split in datasets:
            datasets[split].read_ahead()


def are_flushed() -> bool:
    """Whether this thread flushes denormal numbers to zero."""
    return (torch.tensor([2e-38]) / 4).item() == 0


@contextmanager
def flushed(device: torch.device) -> Iterator[None]:
    """Flush denormal numbers to zero within this block, on a CPU and in this thread.

    If the processor cannot do it, nothing changes.
    """
    before = are_flushed()
    if device.type == "cpu":
        for kind in (np.float32, np.float64):
            np.finfo(kind)  # computes the smallest number once, and warns if it is zero
        torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


class FlushedDenormals(Callback):
    """Flushes denormal numbers to zero during a fit only; other code may need them."""

    def __init__(self) -> None:
        self._within = ExitStack()

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Turn it on."""
        self._within.enter_context(flushed(trainer.strategy.root_device))

    def on_fit_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        """Restore the setting, also if a test or a prediction fails."""
        self._within.close()

    on_exception: Any = on_fit_end


_PRECISIONS = ("bf16-mixed", "bf16-true")
_SLOWER = 1.5  # times as long as in the other precision; above it, a line is printed
_WIDE = 384  # channels of a ViT-S
_FAR_SLOWER = 10.0  # times as long; above it, the run is refused
_TOKENS, _WIDTH, _HIDDEN, _ROUNDS = 256, 384, 768, 3  # about a hundredth of a second in all


class SlowPrecision(Callback):
    """Times a product in 16 and in 32 bits before a run on a CPU."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Refuse float16 if it is emulated.

        Raises:
            ValueError: It is emulated.
        """
        if trainer.strategy.root_device.type != "cpu" or trainer.precision != "16-true":
            return
        ratio = time_over_float32(torch.float16)
        if ratio > _FAR_SLOWER:
            raise ValueError(
                f"trainer.precision={trainer.precision} on a CPU: a product takes this processor "
                f"{ratio:.0f} times as long in float16 as in float32. Use 32-true, or bf16-mixed."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Say which precision is faster, if it is the other one and images pass the backbone."""
        if trainer.strategy.root_device.type != "cpu":
            return
        if trainer.precision in _PRECISIONS:
            ratio = time_over_float32(torch.bfloat16)
            if ratio > _SLOWER:
                _advise(f"{ratio:.1f}", "32-true")
        elif trainer.precision == "32-true" and not pl_module.feature_cache.splits:
            if pl_module.backbone.width < _WIDE:  # a step is not made of products
                return
            ratio = time_over_float32(torch.bfloat16)
            if ratio < 1 / _SLOWER:
                _advise(f"{ratio:.2f}", "bf16-mixed")


def _advise(ratio: str, precision: str) -> None:
    say(
        f"a product takes this processor {ratio} times as long in bfloat16 as in float32: "
        f"--trainer.precision {precision} will be faster."
    )


def time_over_float32(dtype: torch.dtype) -> float:
    """Time of a matrix product in a type over that in float32, the best of three rounds each."""
    left = torch.full((_TOKENS, _WIDTH), 0.5)
    right = torch.full((_WIDTH, _HIDDEN), 0.5)
    low = (left.to(dtype), right.to(dtype))
    pairs = [(_seconds(*low), _seconds(left, right)) for _ in range(_ROUNDS + 1)][1:]
    return min(pair[0] for pair in pairs) / min(pair[1] for pair in pairs)


def _seconds(left: Tensor, right: Tensor) -> float:
    began = time.perf_counter()
    torch.mm(left, right)
    return time.perf_counter() - began


class LearningRates(Callback):
    """Logs the learning rates of adapter and head at the steps that are logged."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        """Log those that this step uses, as `train/lr_adapter` and `train/lr_head`."""
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or (trainer.global_step + 1) % every:
            return
        for group in trainer.optimizers[0].param_groups if trainer.optimizers else ():
            if "name" in group:
                pl_module.log(f"train/lr_{group['name']}", float(group["lr"]))


TASK_CALLBACKS = (MergedEvaluation, KeptInputs, FlushedDenormals, SlowPrecision, LearningRates)
