"""Print a line of a command once, however many processes run."""

from __future__ import annotations

import sys

from lightning.pytorch.utilities import rank_zero_only

from kora.console.tables import visible

__all__ = ["say"]


@rank_zero_only
def say(text: str, *, aside: bool = False) -> None:
    """Print a line on the first rank; with `aside` to stderr, away from what programs read."""
    print(f"kora: {visible(text)}", file=sys.stderr if aside else sys.stdout, flush=True)
