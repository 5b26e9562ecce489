"""Forks of a test, which need not import torch again; and what they fork in their turn."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import forkserver
from multiprocessing.forkserver import _forkserver
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

from lightning.fabric.utilities import rank_zero

from kora.cli import main
from kora.runs.processes import _IMPORTED, Stop, run_child

_IMPORTED.append("tests.support.trained")


class Process:
    """A fork of this process, with what `subprocess.Popen` offers to watch and to end it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._one_at_a_time = threading.Lock()

    def poll(self) -> int | None:
        """The exit code (negative: the signal that killed it), or None."""
        with self._one_at_a_time:
            if self.returncode is None:
                found, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if found else None
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        """The exit code, once it has ended."""
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("kora", timeout)
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        """To a process that has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """As a scheduler does."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """At once."""
        self.send_signal(signal.SIGKILL)


def fork(
    program: Callable[[], object],
    words: list[str],
    streams: Sequence[int],
    folder: Path,
    environment: Mapping[str, str] | None,
) -> Process:
    """A program in a fork, which becomes what a new process of these words would be.

    It has a session of its own.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Process(pid)
    code = 1
    try:
        signal.setitimer(signal.ITIMER_REAL, 0)  # that of pytest-timeout
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setsid()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(number, mode, closefd=False)  # or a fork of this fork would close them
            for number, mode in enumerate("rww")
        )
        os.chdir(folder)
        if environment is not None:
            os.environ.clear()
            os.environ.update(environment)
        rank_zero.rank_zero_only.rank = rank_zero._get_rank() or 0
        sys.argv = words
        forkserver.ensure_running = lambda: None  # there is the one of this process
        program()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@contextmanager
def forked(
    program: Callable[[], object],
    log: Path,
    *,
    words: list[str] | None = None,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Process]:
    """It runs in a process of its own, which writes to `log`, and is gone at the end."""
    with open(os.devnull, "rb") as nothing, log.open("wb") as output:
        streams = (nothing.fileno(), output.fileno(), output.fileno())
        process = fork(program, words or sys.argv, streams, folder or Path.cwd(), environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def keep_a_process() -> None:
    """Have the process whose forks are the runs of a grid: five seconds, the first time."""
    global _kept
    if not _kept:
        with open(os.devnull, "wb") as nothing:
            run_child(["--version"], stop=Stop(), output=nothing, more_follow=True)
    _kept = True


_kept = False


def share_the_kept() -> None:
    """In a fork: the kept process takes its orders too, though it is not this one's child."""
    server: Any = _forkserver
    server.ensure_running = lambda: None


def fork_the_ranks() -> None:
    """In a fork: Lightning starts the processes of the other ranks as forks of this one."""
    from lightning.pytorch.strategies.launchers import subprocess_script as launcher

    started: Any = SimpleNamespace(Popen=_rank)
    launcher.subprocess = started


def _rank(command: list[str], env: dict[str, str], cwd: None) -> Process:
    return fork(partial(main, sys.argv[1:]), sys.argv, (0, 1, 2), Path.cwd(), env)


def fork_the_runs() -> None:
    """In a fork: the runs that it starts are forks of it, with what it was forbidden."""
    import kora.runs.processes

    kora.runs.processes._forked = _run


def _run(
    args: Sequence[str], env: dict[str, str], output: IO[bytes] | None, folder: Path
) -> Process:
    streams = (0, 1, 2) if output is None else (0, *(output.fileno(),) * 2)
    return fork(partial(main, list(args)), ["kora", *args], streams, folder, env)
