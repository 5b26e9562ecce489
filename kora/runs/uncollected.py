"""Turns garbage collection off in the fork server, which imports this module first."""

from __future__ import annotations

import gc

__all__ = ["collect_again"]

gc.disable()


def collect_again() -> None:
    """In a fork: turn it on again, but leave out the objects of the imports."""
    gc.freeze()
    gc.enable()
