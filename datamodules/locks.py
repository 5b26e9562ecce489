"""Locks between processes; without effect if the file system has none."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["acquired", "has_locks", "lock_at", "locked"]


def lock_at(path: Path) -> FileLock:
    """A lock between processes, not acquired yet."""
    # No lock file instead on a file system without locks: a killed process would leave it behind.
    return FileLock(path, fallback_to_soft=False)


def acquired(lock: FileLock, *, timeout_s: float) -> bool:
    """Try to acquire a lock for `timeout_s` seconds (below zero: for ever); whether it succeeded.

    True if the file system has no locks: two processes may then do the same work twice.
    """
    try:
        lock.acquire(timeout=timeout_s)
    except Timeout:
        return False
    except (NotImplementedError, OSError):
        return True
    return True


def has_locks(folder: Path) -> bool:
    """Whether a file of this folder can be locked at all."""
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


@contextmanager
def locked(path: Path, *, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """One process at a time, if the file system has locks; the others call `waiting`."""
    lock = lock_at(path)
    if not acquired(lock, timeout_s=0):
        waiting()
        acquired(lock, timeout_s=-1)
    try:
        yield
    finally:
        lock.release()
