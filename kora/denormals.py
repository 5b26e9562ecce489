"""Numbers too small for the normal form (below 1.2e-38 in float32) are zero while a fit runs.

A processor takes many times as long for them as for others. A long chain of compositions makes them
by the thousand: of the gradients of KoRA's 48 nodes most are so small, or zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["are_flushed", "flushed"]


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
