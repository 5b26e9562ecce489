"""Run the trials of a search, and store their results."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kora.grid.dispatch import Ended, Launcher, Task, dispatch
from kora.grid.file import Job
from kora.grid.plan import FINISHED, NEW, Entry, all_resolved
from kora.grid.run import Outcome
from kora.grid.view import GridView
from kora.runs.processes import Stop
from kora.runs.results import read_results
from kora.tune.batch import Together
from kora.tune.study import Search, Trial

__all__ = ["Trouble", "entries_of", "run_trials"]

_KILLED_AT_MOST = 3  # times, then a trial is left for the next command


@dataclass
class Trouble:
    """Why trials did not finish, by the name of the combination.

    Args:
        mistakes: Mistakes in a config, reported once; each ends the search of its combination.
        killed: Trials that were killed again and again, and are still open.
        elsewhere: Why trials could not be run, at the place where they should; they are open, and
            no more are given.
    """

    mistakes: dict[str, str] = field(default_factory=dict)
    killed: dict[str, str] = field(default_factory=dict)
    elsewhere: str = ""


def entries_of(searches: Sequence[Search]) -> list[Entry]:
    """A line for each trial, past or future: the first of every combination, then the second."""
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
    launcher: Launcher,
    logs: Path,
    view: GridView,
    stop: Stop,
    together: Together | None = None,
) -> Trouble:
    """Run the missing trials. Combinations take turns, so parallel trials differ in theirs.

    First, `together` trains those that can be trained in one batched fit.
    """
    of = {search.combination.name: search for search in searches}
    todo = deque(entry for entry in entries if entry.state != FINISHED)
    if together is not None:
        for search in searches:
            _run_batches(search, todo, together, view=view, stop=stop)
    lost = {name: deque(search.open()) for name, search in of.items()}
    trials: dict[int, Trial] = {}
    times: dict[tuple[str, int], int] = {}
    trouble = Trouble()

    def give() -> Task | None:
        while todo and not trouble.elsewhere:
            entry = todo.popleft()
            name = entry.job.kind
            search = of[name]
            if name in trouble.mistakes:
                continue
            trial = search.again(lost[name].popleft()) if lost[name] else search.ask()
            try:
                runs = _runs(path, search, trial)
            except ValueError as error:
                if search.is_beyond(trial):
                    search.tell(trial, None, seconds=0.0, folders=[], why=str(error))
                    view.ended(replace(entry, job=_job(name, trial)), Outcome(None, str(error), 0))
                else:
                    trouble.mistakes[name] = str(error)
                continue
            trials[entry.number] = trial
            job = _job(name, trial)
            log = logs / f"{search.combination.slug}_{trial.number:03d}.log"
            return Task(Entry(entry.number, job, {}, NEW, None), runs, log)
        return None

    def ended(one: Ended) -> None:
        entry, outcomes, said = one.entry, one.outcomes, one.error.removeprefix("kora: error: ")
        name, last, trial = entry.job.kind, outcomes[-1], trials[entry.number]
        if last.why == "stopped":
            view.ended(entry, last)
        elif last.why.startswith("killed"):
            times[name, trial.number] = times.get((name, trial.number), 0) + 1
            if times[name, trial.number] < _KILLED_AT_MOST and stop.signal is None:
                view.say(f"{last.why}: {entry.job.name}; once more")
                lost[name].appendleft(trial)
                todo.appendleft(entry)
            else:
                view.ended(entry, last)
                trouble.killed[f"{name}, trial {trial.number}"] = last.why
        elif not last.ran:
            trouble.elsewhere = trouble.elsewhere or last.why
            view.ended(entry, last)
        elif last.why == "exit code 2" and not of[name].is_beyond(trial):
            trouble.mistakes.setdefault(name, f"trial {trial.number}: {said or last.why}")
            view.ended(entry, last)
        else:
            view.ended(entry, _stored(of[name], trial, outcomes, said))

    dispatch(give, ended, launcher, view=view, stop=stop)
    return trouble


def _run_batches(
    search: Search, todo: deque[Entry], together: Together, *, view: GridView, stop: Stop
) -> None:
    """Train the missing trials of a combination in batches, as far as that is possible."""
    name = search.combination.name
    if any(trial.folders for trial in search.trials()):
        return  # they trained one by one, each after the results of the others
    while stop.signal is None:
        some = [entry for entry in todo if entry.job.kind == name][: search.at_once]
        if len(some) < 2:
            return
        trials = [search.again(trial) for trial in search.open()][: len(some)]
        trials += [search.ask() for _ in range(len(some) - len(trials))]
        view.say(f"{name}: trials {trials[0].number} to {trials[-1].number} together, if possible.")
        found = together(search, trials)
        if stop.signal is not None:
            return
        if found.why:
            view.say(f"{name}: its trials train one by one: {found.why.rstrip('.')}.")
            return
        seconds = round(found.seconds / len(trials), 3)
        for entry, trial, value in zip(some, trials, found.scores, strict=True):
            why = "" if value is not None else "its loss is not a finite number"
            search.tell(trial, value, seconds=seconds, folders=[], why=why)
            todo.remove(entry)
            outcome = Outcome(None if why else Path(), why, seconds)  # a folder says it is done
            view.ended(replace(entry, job=_job(name, trial)), outcome)


def _job(name: str, trial: Trial) -> Job:
    """A trial, for the view."""
    return Job(f"{name}, trial {trial.number}", (), name)


def _runs(path: Path, search: Search, trial: Trial) -> list[tuple[Job, Mapping[str, object]]]:
    one = search.combination
    jobs = [one.job(trial.number, trial.values, seed) for seed in one.seeds]
    return list(zip(jobs, all_resolved(path, jobs), strict=True))


def _stored(search: Search, trial: Trial, outcomes: list[Outcome], said: str) -> Outcome:
    """Store the result of a trial in its study; returns its outcome for the view."""
    last, metric = outcomes[-1], search.combination.metric
    folders = [outcome.folder for outcome in outcomes if outcome.folder is not None]
    results = [read_results(folder) for folder in folders]
    seconds = sum(result.seconds.get("fit", 0.0) for result in results)
    seconds += sum(outcome.seconds for outcome in outcomes if outcome.folder is None)
    why = f"{last.why}{': ' * bool(said)}{said}" if last.folder is None else ""
    value = None
    if not why:
        values = [result.metrics.get(metric, math.nan) for result in results]
        value = statistics.fmean(values)
        if not math.isfinite(value):
            value, why = None, f"its {metric} is missing, or not a finite number"
    search.tell(trial, value, seconds=round(seconds, 3), folders=folders, why=why)
    took = sum(outcome.seconds for outcome in outcomes)
    return Outcome(folders[0] if not why else None, why, took)
