"""Imported first by the process whose forks are runs: nothing that it imports is garbage."""

from __future__ import annotations

import gc

__all__ = ["collect_again"]

gc.disable()


def collect_again() -> None:
    """In a fork: look for garbage, but not among what was imported."""
    gc.freeze()
    gc.enable()
