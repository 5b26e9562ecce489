"""How much memory a run has taken."""

from __future__ import annotations

import resource
import sys

import torch

__all__ = ["peak_memory_mib"]


def peak_memory_mib(device: torch.device) -> float:
    """Of the GPU where one is used, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**20 if sys.platform == "darwin" else 2**10)
