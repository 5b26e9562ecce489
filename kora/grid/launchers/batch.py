"""Tasks as jobs of a queue that outlives this process: SLURM's, or that of Lightning AI.

What differs between the queues is in a `Queue`; see slurm.py.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from kora.grid.dispatch import Began, Ended, Said, Task
from kora.grid.run import Outcome
from kora.runs.processes import Stop
from kora.runs.search import config_hash

__all__ = ["InQueue", "Queue", "QueueError", "Refused", "Seen", "grid_of", "task_key"]

_STEP_S = 0.2
_FIRST_S = 1.0  # to the next look after news; then it doubles


class QueueError(RuntimeError):
    """The queue did not answer, or not as expected; it may later."""


class Refused(NamedTuple):
    """The queue does not take a task."""

    why: str


class Seen(NamedTuple):
    """A job that is in the queue.

    Args:
        runs: Whether it has started; else it waits.
        where: Its machine, or a link to it.
        why: Why it waits, in the words of the queue.
    """

    runs: bool
    where: str = ""
    why: str = ""


class Queue(Protocol):
    """A queue of jobs; a job is one task."""

    name: str
    look_s: float  # at most between two looks

    def shown(self, tasks: Sequence[Task]) -> str:
        """What `submit` would do, in the words of the queue."""

    def submit(self, tasks: Sequence[Task]) -> Sequence[str | Refused]:
        """Submit tasks; returns the names of their jobs, which stay the same when run again."""

    def known(self, tasks: Sequence[Task]) -> list[str | None]:
        """For each task, the job of an earlier call that is still in the queue.

        Raises:
            QueueError: The queue does not answer.
        """

    def look(self) -> Mapping[str, Seen]:
        """The jobs in the queue, by name; those that have ended are left out.

        Raises:
            QueueError: It does not answer.
        """

    def ended(self, task: Task, job: str) -> Ended | None:
        """How a job that has left the queue ended; fetches its run folders if need be.

        None: it may still be told; ask again.
        """

    def cost(self) -> float | None:
        """What the jobs of this call have cost so far, in US dollars; None: not known."""

    def too_dear(self) -> str | None:
        """Why no more may be spent; None if it may."""

    def stop(self, jobs: Sequence[str]) -> None:
        """Ask jobs to end; they save a checkpoint first."""

    def how_to_stop(self, jobs: Sequence[str]) -> str:
        """The command that stops jobs, for people."""


def task_key(task: Task) -> str:
    """What a task computes, as a name: equal for equal runs, also in another process."""
    return "-".join(config_hash(config)[:12] for _, config in task.runs)


class InQueue:
    """Launches tasks as jobs of a queue.

    A task whose job an earlier call left in the queue is not submitted again.

    Args:
        queue: Where.
        stop: Checked at each call of `events`.
        at_once: Largest number of tasks at a time; None: all, the queue decides.
        leave: After a signal, leave the jobs in the queue; else stop them.
    """

    def __init__(self, queue: Queue, stop: Stop, *, at_once: int | None, leave: bool) -> None:
        self.at_once = at_once
        self._queue = queue
        self._stop = stop
        self._leave = leave
        self._new: list[Task] = []
        self._jobs: dict[str, Task] = {}
        self._told: dict[str, str] = {}
        self._silent = False
        self._pause = _FIRST_S
        self._done = 0

    def start(self, task: Task) -> None:
        """Submit a task with the next call of `events`, together with others."""
        self._new.append(task)

    def events(self) -> list[Began | Said | Ended]:
        """What has changed in the queue since the last call; waits a while between two looks."""
        if not self._new or self._silent:
            self._wait()
        if self._stop.signal is not None:
            return self._stopped()
        found: list[Began | Said | Ended] = []
        try:
            self._collect(found)
        except QueueError as error:
            if not self._silent:
                found.append(Said(f"{error} Looking again."))
            self._silent = True
        else:
            self._silent = False
        self._pause = _FIRST_S if found else min(2 * self._pause, self._queue.look_s)
        return found

    def _collect(self, found: list[Began | Said | Ended]) -> None:
        """Add what has changed in the queue."""
        if self._new and self._queue.too_dear() is None:
            found += self._submitted()
        seen = self._queue.look()
        dear = self._queue.too_dear()
        if dear is not None:
            if self._jobs:
                self._queue.stop(list(self._jobs))
            outcome = Outcome(None, f"stopped: {dear}", ran=False)
            found += [Ended(it.entry, [outcome]) for it in [*self._jobs.values(), *self._new]]
            self._jobs.clear()
            self._new.clear()
        for job, task in list(self._jobs.items()):
            if job in seen:
                found += self._news(job, task, seen[job])
            elif (ended := self._queue.ended(task, job)) is not None:
                found.append(ended)
                del self._jobs[job]
                self._done += 1
                found += self._spent()

    def _submitted(self) -> list[Began | Said | Ended]:
        found: list[Began | Said | Ended] = []
        rest = []
        for task, job in zip(self._new, self._queue.known(self._new), strict=True):
            if job is None:
                rest.append(task)
            else:
                self._jobs[job] = task
                found.append(
                    Said(f"{task.entry.job.name}: is already {self._queue.name} job {job}")
                )
        self._new = rest  # they stay if the queue does not answer; what it has taken is then known
        if not rest:
            return found
        submitted: dict[str, Task] = {}
        names = self._queue.submit(rest)
        self._new = []
        for task, name in zip(rest, names, strict=True):
            if isinstance(name, Refused):
                found.append(Ended(task.entry, [Outcome(None, name.why, ran=False)]))
            else:
                submitted[name] = task
        self._jobs.update(submitted)
        if submitted:
            which = _span(list(submitted))
            found.append(Said(f"{len(submitted)} jobs submitted to {self._queue.name}: {which}"))
        return found

    def _spent(self) -> list[Said]:
        cost = self._queue.cost()
        if cost is None:
            return []
        rest = cost / self._done * len(self._jobs)
        return [Said(f"cost so far: {cost:.2f} US dollars; the rest about {rest:.2f}")]

    def _news(self, job: str, task: Task, seen: Seen) -> list[Began | Said | Ended]:
        now = f"runs {seen.where}" if seen.runs else f"waits {seen.why}"
        before, self._told[job] = self._told.get(job, ""), now
        if now == before or (not seen.runs and not before):
            return []
        if seen.runs:
            return [Began(task.entry, seen.where)]
        return [Said(f"{task.entry.job.name}: job {job} {now}".rstrip())]

    def _wait(self) -> None:
        end = time.monotonic() + self._pause
        while self._stop.signal is None and time.monotonic() < end:
            time.sleep(_STEP_S)

    def _stopped(self) -> list[Began | Said | Ended]:
        tasks, found = [*self._jobs.values(), *self._new], list[Began | Said | Ended]()
        if self._jobs:
            said = f"{len(self._jobs)} jobs go on in {self._queue.name}; to stop them: "
            said += self._queue.how_to_stop(list(self._jobs))
            try:
                if not self._leave:
                    self._queue.stop(list(self._jobs))
                    said = ""
            except QueueError as error:
                said = f"{error} {said}"
            found += [Said(said)] if said else []
        self._jobs.clear()
        self._new.clear()
        return [*found, *(Ended(task.entry, [Outcome(None, "stopped")]) for task in tasks)]


def grid_of(logs: Path) -> str:
    """The name of the grid or search that has its logs in a folder."""
    return (logs.parent if logs.name == "logs" else logs).name.removeprefix("grid_")


def _span(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
