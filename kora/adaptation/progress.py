"""One progress bar for all of `kora adapt`, in estimated seconds."""

from __future__ import annotations

import sys
from types import TracebackType

from tqdm import tqdm

from kora.console.say import say

__all__ = ["Progress"]


class Progress:
    """A bar that moves by estimated seconds: half of a part moves it by half of the part's seconds.

    Without a terminal, each part prints a line.
    """

    def __init__(self, total_s: float) -> None:
        self._live = sys.stderr.isatty()
        self._total = max(total_s, 1e-3)
        self._bar = tqdm(
            total=self._total, disable=not self._live, leave=False,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left",
        )  # fmt: skip
        self._left = 0.0
        self._each = 0.0

    def part(self, name: str, seconds: float, steps: float = 1.0) -> None:
        """Begin a part, with its estimated seconds and number of steps."""
        self._move(self._left)
        self._left, self._each = seconds, seconds / max(steps, 1e-9)
        if self._live:
            self._bar.set_description_str(name)
        else:
            say(f"{name} ...")

    def step(self, count: float = 1.0) -> None:
        """Move by `count` steps of the part."""
        moved = min(self._left, count * self._each)
        self._left -= moved
        self._move(moved)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        with tqdm.external_write_mode():
            say(text)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._move(self._left)
        self._bar.close()

    def _move(self, seconds: float) -> None:
        if self._live:
            self._bar.update(min(seconds, self._total - self._bar.n))
