"""The trials of a search on this machine, one after another or several at once."""

from __future__ import annotations

import math
import queue
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from kora.grid.file import Job
from kora.grid.plan import FINISHED, NEW, Entry, all_resolved
from kora.grid.run import Outcome, run_job, share_of_threads
from kora.grid.view import GridView
from kora.runs.processes import Stop
from kora.runs.results import read_results
from kora.tune.study import Search, Trial

__all__ = ["Trouble", "entries_of", "run_trials"]

_KILLED_AT_MOST = 3  # times, then a trial is left for the next command


@dataclass
class Trouble:
    """What kept trials from their end, by the name of the combination.

    Args:
        mistakes: Of a config, each told once; its combination was left alone from there on.
        killed: Trials that were killed again and again, and are still open.
    """

    mistakes: dict[str, str] = field(default_factory=dict)
    killed: dict[str, str] = field(default_factory=dict)


class _Ended(NamedTuple):
    """What became of a trial."""

    search: Search
    trial: Trial
    entry: Entry
    outcomes: list[Outcome]
    said: str  # the error of its log


def entries_of(searches: Sequence[Search]) -> list[Entry]:
    """A line for each trial that there is or will be: the first of all, then the second of all."""
    entries: list[Entry] = []
    for number in range(max(search.wanted for search in searches)):
        for search in searches:
            if number >= search.wanted:
                continue
            known = next((one for one in search.trials() if one.number == number), None)
            over = known is not None and known.state != "open"
            folder = Path(known.folders[0]) if known and over and known.folders else None
            there = folder if folder is not None and (folder / "results.json").is_file() else None
            name = search.combination.name
            job = Job(f"{name}, trial {number}", (), name)
            state = FINISHED if over else NEW
            entries.append(Entry(len(entries) + 1, job, {}, state, there))
    return entries


def run_trials(
    path: Path,
    searches: Sequence[Search],
    entries: Sequence[Entry],
    *,
    at_once: int,
    logs: Path,
    env: Mapping[str, str],
    view: GridView,
    stop: Stop,
) -> Trouble:
    """Run what is missing, combinations in turn, so that trials at once are of different ones.

    Args:
        path: Of the search's file.
        searches: With their studies, which this thread alone reads and writes.
        entries: Of `entries_of`.
        at_once: So many trials at a time; above 1 each gets its share of the cores.
        logs: Folder for what the runs print.
        env: Of the runs.
        view: Is told what begins and ends.
        stop: Looked at all the time.
    """
    env = env if at_once == 1 else share_of_threads(at_once, env)
    events: queue.Queue[_Ended | str] = queue.Queue()
    of = {search.combination.name: search for search in searches}
    lost = {name: deque(search.open()) for name, search in of.items()}
    todo = deque(entry for entry in entries if entry.state != FINISHED)
    times: dict[tuple[str, int], int] = {}
    trouble = Trouble()
    running = 0

    def begin(entry: Entry) -> bool:
        name = entry.job.kind
        search = of[name]
        if name in trouble.mistakes:
            return False
        trial = search.again(lost[name].popleft()) if lost[name] else search.ask()
        mine = Entry(entry.number, Job(f"{name}, trial {trial.number}", (), name), {}, NEW, None)
        try:
            runs = _runs(path, search, trial)
        except ValueError as error:
            trouble.mistakes[name] = str(error)
            return False
        log = logs / f"{search.combination.slug}_{trial.number:03d}.log"
        view.started(mine)
        pool.submit(partial(_run, search, trial, mine, runs, log, env, stop, events.put))
        return True

    with ThreadPoolExecutor(at_once) as pool:
        while running or (todo and stop.signal is None):
            while todo and running < at_once and stop.signal is None:
                running += begin(todo.popleft())
            if not running:
                continue
            event = events.get()
            if isinstance(event, str):
                view.say(event)
                continue
            running -= 1
            search, trial, entry, outcomes, said = event
            name, last = entry.job.kind, outcomes[-1]
            if last.why == "stopped":
                view.ended(entry, last)
            elif last.why.startswith("killed"):
                times[name, trial.number] = times.get((name, trial.number), 0) + 1
                view.ended(entry, last)
                if times[name, trial.number] < _KILLED_AT_MOST and stop.signal is None:
                    lost[name].appendleft(trial)
                    todo.appendleft(entry)
                else:
                    trouble.killed[f"{name}, trial {trial.number}"] = last.why
            elif last.why == "exit code 2":
                trouble.mistakes.setdefault(name, f"trial {trial.number}: {said or last.why}")
                view.ended(entry, last)
            else:
                view.ended(entry, _told(search, trial, outcomes, said))
    return trouble


def _runs(path: Path, search: Search, trial: Trial) -> list[tuple[Job, Mapping[str, object]]]:
    one = search.combination
    jobs = [one.job(trial.number, trial.values, seed) for seed in one.seeds]
    return list(zip(jobs, all_resolved(path, jobs), strict=True))


def _run(
    search: Search,
    trial: Trial,
    entry: Entry,
    runs: Sequence[tuple[Job, Mapping[str, object]]],
    log: Path,
    env: Mapping[str, str],
    stop: Stop,
    tell: Callable[[_Ended | str], None],
) -> None:
    """The runs of a trial, one after another; the first that fails ends it. In a thread."""
    outcomes: list[Outcome] = []
    try:
        for job, config in runs:
            before = log.stat().st_size if log.is_file() else 0
            say = partial(_said_of, job, tell)
            outcomes.append(run_job(job, config, stop=stop, say=say, env=env, log=log))
            if outcomes[-1].folder is None:
                break
    except Exception as error:  # no room for a log, say: that is this trial's failure alone
        outcomes.append(Outcome(None, f"{type(error).__name__}: {error}"))
    said = "" if outcomes[-1].folder is not None else _error(log, before)
    tell(_Ended(search, trial, entry, outcomes, said))


def _said_of(job: Job, tell: Callable[[_Ended | str], None], text: str) -> None:
    tell(f"{job.name}: {text}")


def _error(log: Path, start: int) -> str:
    """The last error that a run printed: in our words, or the last line of a traceback."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(start)
        text = file.read().decode(errors="replace")
    said = [line for line in text.splitlines() if line.startswith("kora: error: ")]
    if not said and "Traceback (most recent call last):" in text:
        said = [line for line in text.splitlines() if line.strip()]
    return said[-1].removeprefix("kora: error: ") if said else ""


def _told(search: Search, trial: Trial, outcomes: list[Outcome], said: str) -> Outcome:
    """Keep what came of a trial in its study; how it ended, as the view wants it."""
    last, metric = outcomes[-1], search.combination.metric
    folders = [outcome.folder for outcome in outcomes if outcome.folder is not None]
    results = [read_results(folder) for folder in folders]
    seconds = round(sum(result.seconds.get("fit", 0.0) for result in results), 3)
    why = f"{last.why}{': ' * bool(said)}{said}" if last.folder is None else ""
    value = None
    if not why:
        values = [result.metrics.get(metric, math.nan) for result in results]
        value = statistics.fmean(values)
        if not math.isfinite(value):
            value, why = None, f"its {metric} is missing, or no finite number"
    search.tell(trial, value, seconds=seconds, folders=folders, why=why)
    took = sum(outcome.seconds for outcome in outcomes)
    return Outcome(folders[0] if not why else None, why, took)
