"""A lock is had or not, and is had where the file system has none."""

from __future__ import annotations

import errno
import fcntl
import time
from pathlib import Path

import pytest

from datamodules.locks import acquired, lock_at


def test_a_free_lock_is_had_and_keeps_others_out(tmp_path: Path) -> None:
    mine, other = lock_at(tmp_path / "lock"), lock_at(tmp_path / "lock")
    assert acquired(mine, timeout_s=0)
    begun = time.monotonic()
    assert not acquired(other, timeout_s=0.2)
    assert time.monotonic() - begun >= 0.2
    mine.release()
    assert acquired(other, timeout_s=0)
    other.release()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_without_locks_nobody_is_kept_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    for name in ("one", "one", "two"):
        lock = lock_at(tmp_path / name)
        assert acquired(lock, timeout_s=0.1)
        lock.release()
