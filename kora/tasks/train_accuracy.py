"""Training accuracy, counted from the logits of the training steps: no extra pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["TrainAccuracy"]


class TrainAccuracy:
    """Right answers and images of the training batches since the last reading.

    A batch counts once its optimiser step is done. A checkpoint holds the state after a whole
    step, and a resumed run repeats the batches after it.
    """

    def __init__(self) -> None:
        self._before = [0, 0]  # right answers and images from a checkpoint
        self._done: list[Tensor] = []  # at most one, (2,): the same, of this process's steps
        self._open: list[Tensor] = []  # of batches whose optimiser step is not made yet
        self._stepped = False

    def add(self, counts: Tensor) -> None:
        """Note right answers and images, (2,) whole numbers, of a batch of all processes."""
        self._open.append(counts)

    def on_step(self) -> None:
        """The optimiser steps with this batch."""
        self._stepped = True

    def on_batch_end(self) -> None:
        """Count what was noted, if the optimiser has made its step."""
        if self._stepped and self._open:  # a task with a step of its own notes nothing
            self._done = [torch.stack([*self._done, *self._open]).sum(dim=0)]
            self._open, self._stepped = [], False

    def state(self) -> list[int]:
        """Right answers and images, for a checkpoint."""
        done = self._done[0].tolist() if self._done else [0, 0]
        return [a + b for a, b in zip(self._before, done, strict=True)]

    def load(self, state: Sequence[int]) -> None:
        """Continue from a checkpoint."""
        self._before, self._done, self._open, self._stepped = list(state), [], [], False

    def read(self) -> float | None:
        """The accuracy since the last reading; None if no step was made."""
        right, images = self.state()
        self._before, self._done = [0, 0], []
        return right / images if images else None
