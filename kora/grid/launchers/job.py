"""One task of a list, run by a job on another machine that shares the folder of the runs.

python -m kora.grid.launchers.job LIST.json NUMBER
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kora.grid.dispatch import Ended, Task, run_task
from kora.grid.file import Job
from kora.grid.plan import NEW, Entry
from kora.grid.run import Outcome
from kora.runs.durable import read_json, write_text
from kora.runs.processes import Stop

__all__ = ["ENDED", "ending_of", "read_ending", "write_list"]

ENDED = ".ended.json"


def write_list(path: Path, tasks: Sequence[tuple[str, Task]]) -> None:
    """Write tasks, each with its key, for jobs to run."""
    told = [
        {
            "key": key,
            "name": task.entry.job.name,
            "log": None if task.log is None else str(task.log),
            "runs": [{**job._asdict(), "config": config} for job, config in task.runs],
        }
        for key, task in tasks
    ]
    write_text(path, json.dumps(told, indent=1, default=str))


def ending_of(path: Path, number: int) -> Path:
    """The file in which the job of a task says how it ended."""
    return path.with_name(f"{path.stem}.{number}{ENDED}")


def read_ending(path: Path, task: Task) -> Ended | None:
    """How the job of a task ended; None if it has not said so."""
    try:
        told = read_json(path, remedy="Remove it, and repeat the command.")
    except FileNotFoundError:
        return None
    outcomes = [
        Outcome(None if one["folder"] is None else Path(one["folder"]), one["why"], one["seconds"])
        for one in told["outcomes"]
    ]
    return Ended(task.entry, outcomes, told["error"])


def _write_ending(path: Path, ended: Ended) -> None:
    outcomes = [
        {**one._asdict(), "folder": None if one.folder is None else str(one.folder)}
        for one in ended.outcomes
    ]
    write_text(path, json.dumps({"outcomes": outcomes, "error": ended.error}, indent=1))


def _task(told: dict[str, Any], number: int) -> Task:
    jobs = [
        (Job(run["name"], tuple(run["args"]), run["kind"]), run["config"]) for run in told["runs"]
    ]
    entry = Entry(number, Job(told["name"], ()), {}, NEW, None)
    return Task(entry, jobs, None if told["log"] is None else Path(told["log"]))


def main(args: Sequence[str]) -> int:
    """Run a task; returns 0 if all its runs are finished."""
    path, number = Path(args[0]), int(args[1])
    # SLURM's signal before the time limit is for the run, which saves and queues the job again.
    signal.signal(signal.SIGUSR1, lambda *_: None)  # children do not inherit a handler
    told = json.loads(path.read_text(encoding="utf-8"))[number]
    ending_of(path, number).unlink(missing_ok=True)  # of an earlier start of this job
    with Stop.on_signals() as stop:
        ended = run_task(
            _task(told, number), folder=Path.cwd(), stop=stop, env=dict(os.environ),
            tell=lambda said: print(f"kora: {said.text}", flush=True),
            more_follow=False,  # SLURM's signals would end a fork server
        )  # fmt: skip
    _write_ending(ending_of(path, number), ended)
    last = ended.outcomes[-1]
    if last.folder is None:
        print(f"kora: {told['name']}: {last.why}", flush=True)
    return 0 if last.folder is not None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
