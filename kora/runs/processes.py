"""Commands of kora in processes of their own, which stop when this one is told to.

A child has a session of its own, so that Ctrl-C at a terminal reaches this process alone, which
hands every wish to stop on as SIGTERM and waits: a run then leaves a checkpoint.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

__all__ = ["TETHER", "Stop", "run_child", "tie_to_parent"]

_LOOK_S = 0.3
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """What signals have asked of this process: to stop, or to stop at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.at_once = False
        self._since = 0.0

    def ask(self, number: int) -> None:
        """Ask for it; a second Ctrl-C does not wait for checkpoints."""
        if self.signal is None:
            self.signal, self._since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > 1:  # not the same one
            self.at_once = True

    @property
    def exit_code(self) -> int:
        """128 and the number of the signal, as shells have it."""
        assert self.signal is not None
        return 128 + self.signal

    @classmethod
    @contextmanager
    def on_signals(cls) -> Iterator[Stop]:
        """Take SIGINT, SIGTERM and SIGHUP as wishes, where they are not ignored (nohup)."""
        stop = cls()
        if threading.current_thread() is not threading.main_thread():
            yield stop  # Python gives signals to the main thread alone
            return

        def ask(number: int, frame: Any) -> None:
            stop.ask(number)

        taken = [n for n in _SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
        before = {number: signal.signal(number, ask) for number in taken}
        try:
            yield stop
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run_child(
    args: Sequence[str],
    *,
    stop: Stop,
    env: Mapping[str, str] | None = None,
    output: IO[bytes] | None = None,
) -> int:
    """Run `kora ARGS`; its exit code (negative: the signal that killed it).

    Args:
        args: Command and options.
        stop: Looked at while it runs.
        env: Its environment; None: that of this process.
        output: Takes what it prints; None: where this process prints.
    """
    # Where this process imports nothing from the working directory, that one does not either.
    safe_path = [] if {"", str(Path.cwd())} & set(sys.path) else ["-P"]
    process = subprocess.Popen(
        [sys.executable, *safe_path, "-m", "kora", *args],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        env={**(os.environ if env is None else env), TETHER: str(os.getpid())},
        start_new_session=True,
    )
    told = False
    try:
        while True:
            try:
                return process.wait(timeout=_LOOK_S)
            except subprocess.TimeoutExpired:
                if stop.at_once:
                    process.kill()
                elif stop.signal is not None and not told:
                    process.terminate()
                    told = True
    finally:
        if process.poll() is None:  # an error or Ctrl-C here
            process.terminate()
            process.wait()


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
