"""Numbers too small for the normal form (below 1.2e-38 in float32) are zero while a fit runs.

A processor takes many times as long for them as for others. A long chain of compositions makes them
by the thousand: of the gradients of KoRA's 48 nodes most are so small, or zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback

__all__ = ["FlushedDenormals", "are_flushed", "flushed"]


def are_flushed() -> bool:
    """Whether this thread takes such numbers for zero."""
    return (torch.tensor([2e-38]) / 4).item() == 0


@contextmanager
def flushed(device: torch.device) -> Iterator[None]:
    """They are zero within, for computations on a CPU and in this thread, and as before behind it.

    Where the processor cannot do it, nothing changes.
    """
    before = are_flushed()
    if device.type == "cpu":
        for kind in (np.float32, np.float64):
            np.finfo(kind)  # asks for the smallest number once, and warns if that is zero
        torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


class FlushedDenormals(Callback):
    """For the time of a fit; outside of it all is as it was, as others may ask for the smallest."""

    def __init__(self) -> None:
        self._within = ExitStack()

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Begin."""
        self._within.enter_context(flushed(trainer.strategy.root_device))

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Leave it as it was."""
        self._within.close()

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Leave it as it was, also where a test or a prediction fails."""
        self._within.close()
