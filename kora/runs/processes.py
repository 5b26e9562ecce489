"""Commands of kora in processes of their own, which stop when this one is told to.

A child has a session of its own, so that Ctrl-C at a terminal reaches this process alone, which
hands every wish to stop on as SIGTERM and waits: a run then leaves a checkpoint.
"""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from multiprocessing.connection import wait
from multiprocessing.reduction import DupFd
from pathlib import Path
from runpy import run_module
from typing import IO, Any, Protocol

__all__ = ["PARENT_PID", "Stop", "run_child", "tie_to_parent"]

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


class _Child(Protocol):
    """What of `subprocess.Popen` is used here."""

    def wait(self, timeout: float | None = None) -> int: ...
    def poll(self) -> int | None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


def run_child(
    args: Sequence[str],
    *,
    stop: Stop,
    env: Mapping[str, str] | None = None,
    output: IO[bytes] | None = None,
    more_follow: bool = False,
) -> int:
    """Run `kora ARGS`; its exit code (negative: the signal that killed it).

    Args:
        args: Command and options.
        stop: Looked at while it runs.
        env: Its environment; None: that of this process.
        output: Takes what it prints; None: where this process prints.
        more_follow: A process that has imported torch, Lightning and timm is kept beside this one,
            and each child is a fork of it: seconds less for all but the first. Only on Linux.
    """
    start = _forked if more_follow and sys.platform == "linux" else _new
    process = start(args, dict(os.environ if env is None else env), output)
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


def _new(args: Sequence[str], env: dict[str, str], output: IO[bytes] | None) -> _Child:
    return subprocess.Popen(
        [sys.executable, *(["-P"] if _is_safe() else []), "-m", "kora", *args],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        env={**env, PARENT_PID: str(os.getpid())},
        start_new_session=True,
    )


def _is_safe() -> bool:
    """Whether this process imports nothing from the working directory; then no child does."""
    return not {"", str(Path.cwd())} & set(sys.path)


#: What a fit imports: the kept process has it. No thread starts by it, and no accelerator. The last
#: is what W&B imports when a run begins, offline too.
_IMPORTED = [
    "kora.runs.uncollected",
    "kora.training.lightning_cli",
    "kora.tasks",
    "datamodules",
    "kora.reports.figures",
    "wandb.sdk.launch",
]
#: Its own variables, as each child is given an environment: whoever asks it for GPUs starts none.
_OF_THE_KEPT = {"PYTHONSAFEPATH": "", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
#: Of children that are begun or looked after; Python reads an exit code once, whoever asks.
_ONE_AT_A_TIME = threading.Lock()


def _forked(args: Sequence[str], env: dict[str, str], output: IO[bytes] | None) -> _Child:
    """As `_new`, by a fork of the process that has all imports; that one ends with this."""
    out, err = (1, 2) if output is None else (output.fileno(),) * 2
    return _Fork(_Kora(list(args), env, out, err))


class _Fork:
    """A fork of the kept process, as a `_Child`."""

    def __init__(self, target: _Kora) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_IMPORTED)
        self._process = context.Process(target=target)
        with _ONE_AT_A_TIME:
            before = {name: os.environ.get(name) for name in _OF_THE_KEPT}
            os.environ.update(_OF_THE_KEPT, PYTHONSAFEPATH="1" if _is_safe() else "")
            # Python would run the program of this process again in the child, but it is kora's.
            program = sys.modules["__main__"]
            sys.modules["__main__"] = import_module("kora.__main__")
            try:
                self._process.start()
            finally:
                sys.modules["__main__"] = program
                for name, value in before.items():
                    os.environ.pop(name)
                    if value is not None:
                        os.environ[name] = value

    def wait(self, timeout: float | None = None) -> int:
        wait([self._process.sentinel], timeout)
        code = self.poll()
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired("kora", timeout)
        return code

    def poll(self) -> int | None:
        with _ONE_AT_A_TIME:
            code: int | None = self._process.exitcode
        return code

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


class _Kora:
    """`kora ARGS` in a fork, which becomes what a new process would be."""

    def __init__(self, args: list[str], env: dict[str, str], out: int, err: int) -> None:
        self._args, self._env, self._streams = args, env, (out, err)

    def __getstate__(self) -> dict[str, Any]:
        """While it is handed over; the streams are handed over too."""
        return {**self.__dict__, "_streams": tuple(DupFd(one) for one in self._streams)}

    def __call__(self) -> None:
        from kora.runs.uncollected import collect_again

        collect_again()
        _forget_exits()
        # What it starts begins as it would there: not by a server, whose forks import torch again.
        multiprocessing.set_start_method(None, force=True)
        os.setsid()
        Path("/proc/self/comm").write_text(f"kora {self._args[0]}")  # for ps and top
        _end_with_parent()
        threading.Thread(target=_end_with_starter, daemon=True).start()
        for number, stream in enumerate(self._streams, start=1):
            os.dup2(stream.detach(), number)  # type: ignore[attr-defined]
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.environ.clear()
        os.environ.update(self._env)
        threads = self._env.get("OMP_NUM_THREADS", "")
        if threads.isdecimal() and int(threads):
            import torch

            torch.set_num_threads(int(threads))
        sys.argv = ["kora", *self._args]
        try:
            run_module("kora", run_name="__main__", alter_sys=True)
        finally:
            atexit._run_exitfuncs()


def _forget_exits() -> None:
    """Leave to the kept process what imports want done at the end.

    W&B's folder for media, which its import makes, is that of the next fork too.
    """
    from datamodules.loading import end_workers

    finalize: Any = weakref.finalize
    for left in finalize._registry:
        left.atexit = False
    atexit._clear()
    atexit.register(finalize._exitfunc)
    atexit.register(end_workers)


def _end_with_starter() -> None:
    """The kept process, a fork's parent, outlives its own starter while it has children."""
    starter = multiprocessing.parent_process()
    assert starter is not None
    starter.join()
    os.kill(os.getpid(), signal.SIGTERM)


#: Names the process that this one is not to outlive.
PARENT_PID = "KORA_PARENT_PID"

_SET_SIGNAL_OF_PARENTS_DEATH = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>


def tie_to_parent() -> None:
    """Where the environment asks for it, get SIGTERM when the parent dies. Only on Linux."""
    parent = os.environ.pop(PARENT_PID, None)  # not for those that this process starts
    if parent is None or not sys.platform.startswith("linux"):
        return
    _end_with_parent()
    if os.getppid() != int(parent):  # it died before
        sys.exit(128 + signal.SIGTERM)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_SET_SIGNAL_OF_PARENTS_DEATH, signal.SIGTERM)
