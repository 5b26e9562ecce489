"""A line of a command, printed once however many processes run."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_only

from kora.console.tables import visible

__all__ = ["say"]


@rank_zero_only
def say(text: str) -> None:
    """Print a line, on the first rank."""
    print(f"kora: {visible(text)}", flush=True)
