"""Numbers too small for the normal form (below 1.2e-38 in float32) are zero while a fit runs.

A processor takes many times as long for them as for others. A long chain of compositions makes them
by the thousand: of the gradients of KoRA's 48 nodes most are so small, or zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback

__all__ = ["FlushedDenormals", "are_flushed"]


def are_flushed() -> bool:
    """Whether this thread takes such numbers for zero."""
    return (torch.tensor([2e-38]) / 4).item() == 0


class FlushedDenormals(Callback):
    """For the time of a fit on a CPU, in the thread that trains.

    Where the processor cannot do it, nothing changes. Outside of a fit all is as it was, since
    others may ask for the smallest number.
    """

    def __init__(self) -> None:
        self._before: bool | None = None  # outside of a fit

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Begin."""
        self._before = are_flushed()
        if trainer.strategy.root_device.type == "cpu":
            for kind in (np.float32, np.float64):
                np.finfo(kind)  # asks for the smallest number once, and warns if that is zero
            torch.set_flush_denormal(True)

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Leave it as it was."""
        if self._before is not None:
            torch.set_flush_denormal(self._before)
            self._before = None

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Leave it as it was, also where a test or a prediction fails."""
        self.on_fit_end(trainer, pl_module)
