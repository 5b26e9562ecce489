"""Run tasks in separate processes, here or on other machines, and report their results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from kora.grid.file import Job
from kora.grid.plan import Entry
from kora.grid.run import Outcome, run_job
from kora.grid.view import GridView
from kora.runs.processes import Stop

__all__ = ["Began", "Ended", "Launcher", "Said", "Task", "dispatch", "last_error", "run_task"]


@dataclass(frozen=True)
class Task:
    """A line of the view and its runs, which run one after another.

    Args:
        entry: The line.
        runs: Arguments of each run, and its resolved config in plain types.
        log: File for their output; None: the output of this process.
    """

    entry: Entry
    runs: Sequence[tuple[Job, Mapping[str, Any]]]
    log: Path | None = None


class Began(NamedTuple):
    """A task started, or started again."""

    entry: Entry
    where: str = ""


class Said(NamedTuple):
    """Why a run waits, or which checkpoint it resumes from."""

    text: str


class Ended(NamedTuple):
    """A task ended.

    Args:
        entry: Its line.
        outcomes: Outcomes of the runs that started.
        error: The last error message in its log.
    """

    entry: Entry
    outcomes: list[Outcome]
    error: str = ""


class Launcher(Protocol):
    """Where tasks run."""

    @property
    def at_once(self) -> int | None:
        """Largest number of tasks at a time; None: the launcher decides."""

    def start(self, task: Task) -> None:
        """Start a task as soon as there is room."""

    def events(self) -> list[Began | Said | Ended]:
        """New events; waits a while for one. Also checks whether to stop."""


def dispatch(
    give: Callable[[], Task | None],
    ended: Callable[[Ended], None],
    launcher: Launcher,
    *,
    view: GridView,
    stop: Stop,
) -> None:
    """Run tasks until there are no more, or until a signal came and all have stopped.

    `give` returns None if there is no task now; there may be one after another task has ended.
    """
    running = 0
    while True:
        room = launcher.at_once
        while stop.signal is None and (room is None or running < room):
            task = give()
            if task is None:
                break
            launcher.start(task)
            running += 1
        if not running:
            return
        for event in launcher.events():
            if isinstance(event, Began):
                view.started(*event)
            elif isinstance(event, Said):
                view.say(event.text)
            else:
                running -= 1
                ended(event)


def run_task(
    task: Task, *, folder: Path, stop: Stop, env: Mapping[str, str],
    tell: Callable[[Said], None], more_follow: bool = True,
) -> Ended:  # fmt: skip
    """Run a task up to its first failed run. Called in a thread, or on another machine.

    Paths are relative to `folder`, as the working directory of the process changes while it parses
    a config in another thread. `more_follow`: whether this process runs more tasks.
    """
    outcomes: list[Outcome] = []
    before, log = 0, None if task.log is None else folder / task.log
    try:
        for job, config in task.runs:
            before = log.stat().st_size if log and log.is_file() else 0

            def say(text: str, name: str = job.name) -> None:
                tell(Said(f"{name}: {text}"))

            outcome = run_job(
                job, config, stop=stop, say=say, env=env, log=log, folder=folder,
                more_follow=more_follow,
            )  # fmt: skip
            outcomes.append(outcome._replace(folder=_shortened(outcome.folder, folder)))
            if outcomes[-1].folder is None:
                break
    except Exception as error:  # such as no room for a log: only this task fails
        outcomes.append(Outcome(None, f"{type(error).__name__}: {error}", ran=False))
    said = ""
    if outcomes[-1].folder is None and log is not None and log.is_file():
        said = _last_error(log, before)
    return Ended(task.entry, outcomes, said)


def _shortened(path: Path | None, folder: Path) -> Path | None:
    """A path below `folder` without it, as people write it."""
    return path.relative_to(folder) if path is not None and path.is_relative_to(folder) else path


def _last_error(log: Path, start: int) -> str:
    """The last error in a log after byte `start`."""
    with log.open("rb") as file:
        file.seek(start)
        return last_error(file.read().decode(errors="replace"))


def last_error(text: str) -> str:
    """The last error in a log: kora's line, or the last of a traceback."""
    said = [line for line in text.splitlines() if line.startswith("kora: error: ")]
    if not said and "Traceback (most recent call last):" in text:
        said = [line for line in text.splitlines() if line.strip()]
    return said[-1] if said else ""
