"""Locks between processes, also where the file system has none."""

from __future__ import annotations

from filelock import FileLock, Timeout

__all__ = ["acquired"]


def acquired(lock: FileLock, *, timeout_s: float) -> bool:
    """Whether a lock is ours after so many seconds at the latest.

    Where the file system has no locks it is: two processes may then do the same work twice.
    """
    try:
        lock.acquire(timeout=timeout_s)
    except Timeout:
        return False
    except (NotImplementedError, OSError):
        return True
    return True
