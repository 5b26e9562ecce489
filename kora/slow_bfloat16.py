"""A word where bfloat16 makes a fit on a CPU slower: processors without units for it emulate it."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from kora.progress import say

__all__ = ["SlowBfloat16", "bfloat16_over_float32"]

_PRECISIONS = ("bf16-mixed", "bf16-true")
_SLOWER = 1.5  # times as long, before it is worth a word
_TOKENS, _WIDTH, _HIDDEN, _ROUNDS = 256, 384, 768, 3  # about a hundredth of a second in all


class SlowBfloat16(Callback):
    """Measures one product in both types before a fit in bfloat16 on a CPU."""

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Say how much slower it is, where it is."""
        if trainer.strategy.root_device.type != "cpu" or trainer.precision not in _PRECISIONS:
            return
        ratio = bfloat16_over_float32()
        if ratio > _SLOWER:
            say(
                f"a product takes this processor {ratio:.1f} times as long in bfloat16 as in "
                "float32: --trainer.precision 32-true will be faster."
            )


def bfloat16_over_float32() -> float:
    """Time of a matrix product in bfloat16 over that in float32, the best of three rounds each."""
    left = torch.full((_TOKENS, _WIDTH), 0.5)
    right = torch.full((_WIDTH, _HIDDEN), 0.5)
    low = (left.bfloat16(), right.bfloat16())
    pairs = [(_seconds(*low), _seconds(left, right)) for _ in range(_ROUNDS + 1)][1:]
    return min(pair[0] for pair in pairs) / min(pair[1] for pair in pairs)


def _seconds(left: Tensor, right: Tensor) -> float:
    began = time.perf_counter()
    torch.mm(left, right)
    return time.perf_counter() - began
