"""A function in a fork of a test, to be stopped, killed or waited for."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.cli import Process, become

__all__ = ["forked"]


@contextmanager
def forked(program: Callable[[], object], log: Path) -> Iterator[Process]:
    """It runs in a process of its own, which writes to `log`, and is gone at the end."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        streams = (os.open(os.devnull, os.O_RDONLY), output, output)
        become(program, sys.argv, streams, Path.cwd(), None)
    process = Process(pid)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
