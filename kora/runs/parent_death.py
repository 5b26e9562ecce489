"""A process that ends when the one that started it does, also when that was killed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

__all__ = ["TETHER", "tie_to_parent"]

#: Names the process that this one is not to outlive.
TETHER = "KORA_TETHER"

_SET_SIGNAL_OF_PARENTS_DEATH = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>


def tie_to_parent() -> None:
    """Where the environment asks for it, get SIGTERM when the parent dies. Only on Linux."""
    parent = os.environ.pop(TETHER, None)  # not for those that this process starts
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_SET_SIGNAL_OF_PARENTS_DEATH, signal.SIGTERM)
    if os.getppid() != int(parent):  # it died before
        sys.exit(128 + signal.SIGTERM)
