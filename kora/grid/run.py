"""One run of a grid in its own process: an error or a lack of memory ends only this run."""

from __future__ import annotations

import os
import platform
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import IO, Any, NamedTuple

from kora.grid.file import Job, file_name
from kora.runs.processes import Stop, run_child
from kora.runs.search import find_finished_run, last_checkpoint
from kora.training.config_lock import alone_with

__all__ = ["Outcome", "log_folder", "log_path", "run_job", "share_of_threads"]


class Outcome(NamedTuple):
    """How a run ended.

    Args:
        folder: Of the finished run; None if it failed or was stopped.
        why: Why there is no folder; "" if there is one.
        seconds: How long it took here.
        ran: False if it is not the run that failed: nobody took it, or it was ended or lost where
            it ran. The same may succeed another time.
    """

    folder: Path | None
    why: str = ""
    seconds: float = 0.0
    ran: bool = True


def run_job(
    job: Job,
    config: Mapping[str, Any],
    *,
    stop: Stop,
    say: Callable[[str], None],
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    folder: Path | None = None,
    more_follow: bool = True,
) -> Outcome:
    """Finish a run: start it, resume it, or wait for the process that trains it.

    Args:
        job: Its arguments.
        config: Resolved, in plain types.
        stop: Checked while it runs.
        say: Called with the reason why it waits, or the checkpoint that it resumes from.
        env: Environment of its process; None: that of this one.
        log: File for its output; None: the output of this process.
        folder: Working directory, to which paths are relative; None: that of this process. Name it
            in a thread: a parser at work elsewhere may change that of the process.
        more_follow: Whether this process runs more of them, see `run_child`.
    """
    if folder is not None:
        config = {**config, "runs_dir": str(folder / str(config["runs_dir"]))}
        log = None if log is None else folder / log
    started = time.monotonic()
    with ExitStack() as exits:
        mine = exits.enter_context(
            alone_with(config, say=say, given_up=lambda: stop.signal is not None)
        )
        if not mine:
            return Outcome(None, "stopped")
        found = find_finished_run(config)  # another process may have finished it meanwhile
        if found is not None:
            return Outcome(found)
        last = last_checkpoint(config)
        args = ["fit", *job.args]
        if last is not None:
            shown = last.relative_to(folder) if folder and last.is_relative_to(folder) else last
            say(f"resumes from {shown}")
            args += ["--ckpt_path", str(last)]
        output = None if log is None else exits.enter_context(_opened(log, job, last))
        code = run_child(
            args, stop=stop, env=env, output=output, more_follow=more_follow, folder=folder
        )
        found = None if code else find_finished_run(config)
    seconds = time.monotonic() - started
    if found is not None:
        return Outcome(found, "", seconds)
    if stop.signal is not None:
        return Outcome(None, "stopped", seconds)
    return Outcome(None, _reason(code), seconds)


def _opened(log: Path, job: Job, last: Path | None) -> IO[bytes]:
    """The log, opened to append, after a line with time, machine and command."""
    log.parent.mkdir(parents=True, exist_ok=True)
    how = "" if last is None else f", resumes from {last}"
    moment = datetime.now().astimezone().isoformat(timespec="seconds")
    head = f"=== {moment} on {platform.node()}: {job.command}{how}\n"
    file = log.open("ab", buffering=0)
    file.write(head.encode())
    return file


def _reason(code: int) -> str:
    if code >= 0:
        return f"exit code {code}" if code else "ended without a result"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def log_path(grid: Path, job: Job, number: int, runs_dir: str) -> Path:
    """The log file of a run, next to the runs; used if several run at once."""
    name = file_name(job.name)[:100]
    return log_folder(grid, runs_dir) / f"{number:03d}_{name}.log"


def log_folder(grid: Path, runs_dir: str) -> Path:
    """The folder of the log files of a grid."""
    return Path(runs_dir) / f"grid_{grid.stem}"


def share_of_threads(jobs: int, env: Mapping[str, str]) -> dict[str, str]:
    """The environment of one of several runs at once, with its share of the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    share = max(1, (cores or 1) // jobs)
    given = env.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given):
        share = min(share, int(given))
    return {**env, "OMP_NUM_THREADS": str(share)}
