"""Run the real command line in this process, on tiny data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.forkserver import _forkserver
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NoReturn

import pytest
import yaml

from kora.cli import main
from kora.runs.processes import Stop, run_child

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


def kora(capfd: pytest.CaptureFixture[str], *args: str | Path) -> Outcome:
    """Run `kora ARGS` here; never raises."""
    code = 0
    try:
        main([str(arg) for arg in args])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capfd.readouterr()
    return Outcome(code, captured.out, captured.err)


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


@contextmanager
def started(
    *args: str | Path,
    log: Path,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    first: Callable[[], object] | None = None,
) -> Iterator[Process]:
    """`kora ARGS` in a process of its own, as from a terminal; it is gone at the end.

    A fork of this one, in a session of its own, and so are the ranks that it starts: to import
    torch anew takes five seconds. What is to be done `first` is done in it.
    """
    with open(os.devnull, "rb") as nothing, log.open("wb") as output:
        streams = (nothing.fileno(), output.fileno(), output.fileno())
        process = forked(args, streams, folder or Path.cwd(), environment, first)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def forked(
    args: Sequence[str | Path],
    streams: Sequence[int],
    folder: Path,
    environment: Mapping[str, str] | None,
    first: Callable[[], object] | None = None,
) -> Process:
    """`kora ARGS` in a fork of this process, on these streams."""
    import kora.training.lightning_cli  # noqa: F401

    keep_a_process()
    sys.stdout.flush()
    sys.stderr.flush()
    words = ["kora", *map(str, args)]

    def program() -> None:
        if first is not None:
            first()
        main(words[1:])

    pid = os.fork()
    if not pid:
        share_the_kept()
        fork_the_ranks()
        become(program, words, streams, folder, environment)
    return Process(pid)


def become(
    program: Callable[[], object],
    words: list[str],
    streams: Sequence[int],
    folder: Path,
    environment: Mapping[str, str] | None,
) -> NoReturn:
    """In a fork: what a new process would do. It has a session of its own, and never returns."""
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
        sys.argv = words
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


def ended(
    folder: Path, args: Sequence[str | Path], environment: Mapping[str, str], log: Path
) -> tuple[int, str]:
    """Exit code (negative: a signal) and output of `kora ARGS`, as a run of a grid is started."""
    with chdir(folder), log.open("wb") as output:
        code = run_child(
            [str(arg) for arg in args], stop=Stop(), env=environment, output=output,
            more_follow=True,
        )  # fmt: skip
    return code, log.read_text()


def all_ended(
    runs: Sequence[tuple[Sequence[str | Path], Mapping[str, str], Path]],
) -> list[tuple[int, float]]:
    """The exit code of each `kora ARGS`, and when it ended; each is args, environment and log.

    Six at once, in the working directory of this process.
    """

    def end(
        args: Sequence[str | Path], environment: Mapping[str, str], log: Path
    ) -> tuple[int, float]:
        with log.open("wb") as output:
            code = run_child(
                [str(arg) for arg in args], stop=Stop(), env=environment, output=output,
                more_follow=True,
            )  # fmt: skip
        return code, time.time()

    with ThreadPoolExecutor(6) as pool:
        return list(pool.map(lambda run: end(*run), runs))


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
    from lightning.pytorch.utilities import rank_zero_only

    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        rank_zero_only.rank = int(env["LOCAL_RANK"])
        become(partial(main, sys.argv[1:]), sys.argv, (0, 1, 2), Path.cwd(), env)
    return Process(pid)


def fork_the_runs() -> None:
    """In a fork: the runs that it starts are forks of it, with what it was forbidden."""
    import kora.runs.processes

    kora.runs.processes._forked = _run


def _run(args: Sequence[str], env: dict[str, str], output: IO[bytes] | None) -> Process:
    pid = os.fork()
    if not pid:
        streams = (0, 1, 2) if output is None else (0, *(output.fileno(),) * 2)
        become(partial(main, list(args)), ["kora", *args], streams, Path.cwd(), env)
    return Process(pid)


def wait_for(path: Path, process: Process, *, patience_s: float = 240) -> None:
    """Until a file is there, the process has ended, or patience has."""
    end = time.monotonic() + patience_s
    while not path.exists() and time.monotonic() < end and process.poll() is None:
        time.sleep(0.1)


def tiny_config(**changes: Any) -> dict[str, Any]:
    """Two steps of LoRA on vit_nano with random weights, on 32-pixel scenes; top-level changes."""
    config = {
        "experiment": "tiny",
        "model": {
            "class_path": "kora.tasks.ClassificationTask",
            "init_args": {
                "backbone": {"name": "vit_nano", "weights": "random", "image_size": 32},
                "adapter": {"class_path": "kora.adapters.LoRA", "init_args": {"rank": 2}},
            },
        },
        "data": {
            "class_path": "datamodules.Synthetic",
            "init_args": {
                "image_size": 32,
                "train_images": 48,
                "test_images": 24,
                "val_images": 12,
                "batch_size": 18,
            },
        },
        "trainer": {"max_epochs": 1, "enable_progress_bar": False, "accelerator": "cpu"},
    }
    return {**config, **changes}


def write_config(path: Path, config: dict[str, Any]) -> Path:
    """Write a config file."""
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def results(run: Path) -> dict[str, Any]:
    """The record of a run."""
    record: dict[str, Any] = json.loads((run / "results.json").read_text(encoding="utf-8"))
    return record


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with tiny.yaml in it."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "tiny.yaml", tiny_config())
    return tmp_path


SCENES: dict[str, Any] = {
    "class_path": "datamodules.Synthetic",
    "init_args": {
        "image_size": 32,
        "maps": ["depth_m"],
        "train_images": 48,
        "test_images": 24,
        "val_images": 12,
        "batch_size": 18,
        "augment": "flip_crop_color",
    },
}


def depth_config(*, data: Any = SCENES, protocol: Any = "full", **changes: Any) -> dict[str, Any]:
    config = tiny_config(experiment="tiny_depth", data=data, **changes)
    model = config["model"]
    model["class_path"] = "kora.tasks.DepthTask"
    model["init_args"] |= {
        "head": {"class_path": "kora.heads.LinearDepth", "init_args": {"bins": 16}},
        "protocol": protocol,
    }
    return config
