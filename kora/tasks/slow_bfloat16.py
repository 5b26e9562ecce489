"""A word where 16 bits make a fit on a CPU slower: processors without units for them emulate them.

With bfloat16 a product takes several times as long, with float16 (16-true) 35 to 75 times, which
nobody waits for knowingly. Lightning runs 16-mixed as bf16-mixed on a CPU, and says so.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from kora.console.say import say

__all__ = ["SlowBfloat16", "time_over_float32"]

_PRECISIONS = ("bf16-mixed", "bf16-true")
_SLOWER = 1.5  # times as long, before it is worth a word
_FAR_SLOWER = 10.0  # before it is refused
_TOKENS, _WIDTH, _HIDDEN, _ROUNDS = 256, 384, 768, 3  # about a hundredth of a second in all


class SlowBfloat16(Callback):
    """Measures one product in both types before work in 16 bits on a CPU."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Refuse float16 where it is emulated.

        Raises:
            ValueError: It is.
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
        """Say how much slower bfloat16 is, where it is."""
        if trainer.strategy.root_device.type != "cpu" or trainer.precision not in _PRECISIONS:
            return
        ratio = time_over_float32(torch.bfloat16)
        if ratio > _SLOWER:
            say(
                f"a product takes this processor {ratio:.1f} times as long in bfloat16 as in "
                "float32: --trainer.precision 32-true will be faster."
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
