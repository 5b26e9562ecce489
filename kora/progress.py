"""What a run shows and says while it works."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities import rank_zero_only

__all__ = ["ProgressBar", "say", "without_noise"]

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


@rank_zero_only
def say(text: str) -> None:
    """Print a line, on the first rank."""
    print(f"kora: {text}", flush=True)


class ProgressBar(RichProgressBar):
    """Lightning's bar with its estimate, less the version number."""

    def get_metrics(self, *args: Any) -> dict[str, Any]:
        metrics = dict(super().get_metrics(*args))
        metrics.pop("v_num", None)
        return metrics


@contextmanager
def without_noise() -> Iterator[None]:
    """Leave out the messages that tell a user nothing."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for text in _NOISE:
            warnings.filterwarnings("ignore", text)
        yield
