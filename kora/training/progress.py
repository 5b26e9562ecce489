"""What a run shows and says while it works."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning import LightningModule, Trainer

from kora.lightning_internals import Bar

__all__ = ["ProgressBar", "without_noise"]

_READ_EVERY_S = 0.5

#: Warnings of Lightning and torch that tell a user of kora nothing.
_NOISE = (
    "LightningCLI's args parameter",
    ".*does not have many workers",
    ".*LeafSpec",
    ".*Checkpoint directory .* exists",
    ".*Experiment logs directory",
    ".*number of training batches",
    ".*module.s. in eval mode",
    ".*callbacks used to create the checkpoint",
    ".*tensorboardX",
    ".*have overridden `transfer_batch_to_device`",
    ".*resuming from a checkpoint that ended before",
)


class ProgressBar(Bar):
    """Lightning's progress bar with its estimate, without the version number.

    The bar is drawn once a second, so metrics are read at most twice a second within an epoch:
    reading takes time, and on a GPU waits for the step.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._shown: dict[str, Any] = {}
        self._read_at = -math.inf

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The metrics next to the bar."""
        now = time.monotonic()
        if not trainer.training or trainer.is_last_batch or now - self._read_at >= _READ_EVERY_S:
            self._shown = dict(super().get_metrics(trainer, pl_module))
            self._shown.pop("v_num", None)
            self._read_at = now
        return self._shown

    def training_text(self, text: str) -> str:
        """Lightning's text with epochs from 1; its last epoch is -2 if only max_steps is set."""
        name, _, place = text.strip().partition(" ")
        epoch, slash, last = place.partition("/")
        counted = f"{name} {int(epoch) + 1}"
        if slash and last != "-2":
            counted += f"/{int(last) + 1}"
        return counted.ljust(len(text))


@contextmanager
def without_noise() -> Iterator[None]:
    """Hide the messages that tell a user nothing."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for text in _NOISE:
            warnings.filterwarnings("ignore", text)
        yield
