"""Run kora commands in child processes, which stop when this one is asked to.

A child has its own session, so Ctrl-C at a terminal reaches only this process. It passes every
request to stop on as SIGTERM and waits, so that a run can save a checkpoint.
"""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import multiprocessing.context
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
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.reduction import DupFd
from pathlib import Path
from runpy import run_module
from typing import IO, Any, Protocol

__all__ = ["PARENT_PID", "Stop", "run_child", "start_server", "tie_to_parent"]

_LOOK_S = 0.3
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """Whether signals have asked this process to stop, or to stop at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.at_once = False
        self._since = 0.0

    def ask(self, number: int) -> None:
        """Request a stop; a second Ctrl-C does not wait for checkpoints."""
        if self.signal is None:
            self.signal, self._since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > 1:  # not the same one
            self.at_once = True

    @property
    def exit_code(self) -> int:
        """128 plus the number of the signal, as in shells."""
        assert self.signal is not None
        return 128 + self.signal

    @classmethod
    @contextmanager
    def on_signals(cls) -> Iterator[Stop]:
        """Take SIGINT, SIGTERM and SIGHUP as requests to stop, unless they are ignored (nohup)."""
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
    """The part of `subprocess.Popen` that is used here."""

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
    folder: Path | None = None,
) -> int:
    """Run `kora ARGS`; returns its exit code (negative: the signal that killed it).

    Args:
        args: Command and options.
        stop: Checked while it runs.
        env: Its environment; None: that of this process.
        output: File for its output; None: the output of this process.
        more_follow: Fork each child from a fork server, which has imported torch, Lightning and
            timm. This saves seconds for all but the first. Only on Linux.
        folder: Its working directory; None: that of this process.
    """
    start = _forked if more_follow and sys.platform == "linux" else _new
    process = start(args, dict(os.environ if env is None else env), output, folder or Path.cwd())
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


def _new(
    args: Sequence[str], env: dict[str, str], output: IO[bytes] | None, folder: Path
) -> _Child:
    return subprocess.Popen(
        [sys.executable, *(["-P"] if _is_safe(folder) else []), "-m", "kora", *args],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        env={**env, PARENT_PID: str(os.getpid())},
        start_new_session=True,
    )


def _is_safe(folder: Path) -> bool:
    """Whether this process imports nothing from the working directory; then children do not."""
    return not {"", str(folder)} & set(sys.path)


#: What a fit imports; the fork server imports it once. This starts no thread and no accelerator.
#: The backbone imports timm, torch's optimisers the compiler, and W&B the module of launches, when
#: a run begins.
_IMPORTED = [
    "kora.runs.in_no_folder",
    "kora.runs.uncollected",
    "kora.training.lightning_cli",
    "torch._dynamo",
    "kora.backbone.nano",
    "kora.tasks",
    "datamodules.classes",
    "kora.reports.figures",
    "wandb.sdk.launch",
    "kora.training.warm",
]
#: Variables of the fork server itself; each child gets its own environment. With the second one,
#: asking torch for GPUs does not start any.
_SERVER_ENV = {"PYTHONSAFEPATH": "", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
#: For starting children and reading exit codes: Python can read an exit code only once.
_ONE_AT_A_TIME = threading.Lock()


def _forked(
    args: Sequence[str], env: dict[str, str], output: IO[bytes] | None, folder: Path
) -> _Child:
    """As `_new`, but as a fork of the fork server, which ends with this process."""
    out, err = (1, 2) if output is None else (output.fileno(),) * 2
    return _Fork(_Kora(list(args), env, out, err, folder))


def start_server() -> None:
    """Have a fork server begin its imports, if forks will follow; returns at once (Linux only)."""
    if sys.platform == "linux":
        with _server_of(Path.cwd()):
            forkserver.ensure_running()


@contextmanager
def _server_of(folder: Path) -> Iterator[multiprocessing.context.ForkServerContext]:
    """Where a fork server may be started, for a child that works in this folder."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    with _ONE_AT_A_TIME, _without_interrupt():
        before = {name: os.environ.get(name) for name in _SERVER_ENV}
        os.environ.update(_SERVER_ENV, PYTHONSAFEPATH="1" if _is_safe(folder) else "")
        try:
            yield context
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


@contextmanager
def _without_interrupt() -> Iterator[None]:
    """What starts meanwhile inherits that Ctrl-C waits: this process says what becomes of it."""
    resource_tracker.ensure_running()  # it would let Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Fork:
    """A fork of the fork server, as a `_Child`."""

    def __init__(self, target: _Kora) -> None:
        with _server_of(target.folder) as context:
            self._process = context.Process(target=target)
            # Python would run the main module of this process again in the child: give it kora's.
            program = sys.modules["__main__"]
            sys.modules["__main__"] = import_module("kora.__main__")
            try:
                self._process.start()
            finally:
                sys.modules["__main__"] = program

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
    """`kora ARGS` in a fork, which is set up like a new process."""

    def __init__(
        self, args: list[str], env: dict[str, str], out: int, err: int, folder: Path
    ) -> None:
        self._args, self._env, self._streams = args, env, (out, err)
        self.folder = folder

    def __getstate__(self) -> dict[str, Any]:
        """State for the fork server, with duplicates of the streams."""
        return {**self.__dict__, "_streams": tuple(DupFd(one) for one in self._streams)}

    def __call__(self) -> None:
        from kora.runs.uncollected import collect_again

        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        os.chdir(self.folder)
        collect_again()
        _forget_exits()
        # Its own children start as usual: from a fork server, they would import torch again.
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
    """Leave the exit handlers of imports to the fork server.

    For example, W&B's import makes a folder for media, which the next fork uses, too.
    """
    from datamodules.loading import end_workers

    finalize: Any = weakref.finalize
    for left in finalize._registry:
        left.atexit = False
    atexit._clear()
    atexit.register(finalize._exitfunc)
    atexit.register(end_workers)


def _end_with_starter() -> None:
    """End this fork with the process that started the fork server.

    The fork server itself, which is the parent process, would live on while it has children.
    """
    starter = multiprocessing.parent_process()
    assert starter is not None
    starter.join()
    os.kill(os.getpid(), signal.SIGTERM)


#: Environment variable with the id of the parent process, which this one must not outlive.
PARENT_PID = "KORA_PARENT_PID"

_SET_SIGNAL_OF_PARENTS_DEATH = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>


def tie_to_parent() -> None:
    """If the environment asks for it, get SIGTERM when the parent process dies. Only on Linux."""
    parent = os.environ.pop(PARENT_PID, None)  # children must not inherit it
    if parent is None or not sys.platform.startswith("linux"):
        return
    _end_with_parent()
    if os.getppid() != int(parent):  # it died before
        sys.exit(128 + signal.SIGTERM)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_SET_SIGNAL_OF_PARENTS_DEATH, signal.SIGTERM)
