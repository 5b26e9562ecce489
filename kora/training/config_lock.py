"""A lock for each config: one process at a time runs it, on all machines that share `runs_dir`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from kora.runs.search import config_hash, find_at_work

__all__ = ["alone_with", "is_taken"]

_LOOK_S = 1.0


@contextmanager
def alone_with(
    config: Mapping[str, Any],
    *,
    say: Callable[[str], None],
    given_up: Callable[[], bool] = lambda: False,
) -> Iterator[bool]:
    """Wait until no other process runs a config, and keep others waiting meanwhile.

    Also waits for a run of the config whose parent process is gone.

    Yields:
        False if waiting was given up.
    """
    from datamodules.locks import acquired

    lock = _lock_of(config)
    announced = False

    def wait_for(who: str) -> None:
        nonlocal announced
        if not announced:
            say(f"waiting for {who}.")
        announced = True

    held = False
    try:
        while not (held or given_up()):
            held = acquired(lock, timeout_s=_LOOK_S)
            if not held:
                wait_for("another process with the same run")
        while held and not given_up() and (at_work := find_at_work(config)) is not None:
            wait_for(f"another process that works on {at_work}")
            time.sleep(_LOOK_S)
        yield held and not given_up()
    finally:
        lock.release()


def is_taken(config: Mapping[str, Any]) -> bool:
    """Whether another process runs a config now; does not wait."""
    from datamodules.locks import acquired

    lock = _lock_of(config)
    try:
        return not acquired(lock, timeout_s=0) or find_at_work(config) is not None
    finally:
        lock.release()


def _lock_of(config: Mapping[str, Any]) -> FileLock:
    from datamodules.locks import lock_at

    folder = Path(config["runs_dir"]) / config["experiment"] / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    return lock_at(folder / f"{config_hash(config)[:16]}.lock")
