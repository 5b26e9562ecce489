"""`kora adapt FOLDER --launcher lightning`: the command as one job, and its results here."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kora.adaptation import results_folder
from kora.console.say import say
from kora.grid.dispatch import Ended, Said, Task
from kora.grid.file import Job
from kora.grid.launchers.batch import InQueue
from kora.grid.launchers.lightning_jobs import LightningJobs
from kora.grid.options import lightning_options
from kora.grid.plan import NEW, Entry
from kora.grid.run import Outcome
from kora.runs.processes import Stop

__all__ = ["adapt_on_lightning"]

_OPTIONS = ("backbone", "weights", "minutes", "out", "seed")


class _Adapts(LightningJobs):
    """A job that runs `kora adapt`, whose folder of results is fetched."""

    def _words(self, job: Job) -> list[str]:
        return ["kora", "adapt", *job.args]

    def _fetched(self, job: Any, config: Mapping[str, Any]) -> Outcome | None:
        out = Path(config["experiment"])
        with self._copied(job, out, out.parent) as where:
            if not (where / out.name / "index.html").is_file():
                return None
            if out.exists():
                remedy = "Move it away, and repeat the command to fetch the folder of the job"
                return Outcome(None, f"{out} appeared here while the job ran. {remedy}")
            (where / out.name).rename(out)
            return Outcome(out)

    def _lacks(self, job: Any, run: Job, config: Mapping[str, Any]) -> str:
        out = config["experiment"]
        return f"job {job.name} is completed, but wrote no {out}. Look at {job.link}"


def adapt_on_lightning(own: argparse.Namespace, *, stop: Stop) -> None:
    """Run the command in a Studio's snapshot, and fetch its results.

    Raises:
        ValueError: What a job needs is missing, the results are here already, or they could not
            come back.
        RuntimeError: The job failed.
    """
    out = Path(own.out) if own.out else results_folder(Path(own.folder))
    if out.exists():
        raise ValueError(f"{out} is here already. Name another folder for the results with --out.")
    if out.is_absolute():
        raise ValueError(
            f"--out is {out}. What a job writes comes back from below the folder in which it runs: "
            "give a relative path."
        )
    given = {name: getattr(own, name) for name in _OPTIONS} | {"out": out}
    words = [own.folder, *(f"--{k}={v}" for k, v in given.items() if v is not None)]
    job = Job(f"kora adapt {own.folder}", tuple(map(str, words)))
    # What the job computes, for its name; and where its results are.
    config = {"trainer": {}, "model": {}, "data": {"adapt": words}, "experiment": str(out)}
    entry = Entry(1, job, config, NEW, None)
    task = Task(entry, [(job, config)], out.with_name(f"{out.name}_job") / "output.log")
    queue = _Adapts(**lightning_options(own))
    if own.dry_run:
        print(queue.shown([task]))
        return
    launcher = InQueue(queue, stop, at_once=None, leave=own.on_stop == "leave")
    launcher.start(task)
    ended: Ended | None = None
    while ended is None:
        for event in launcher.events():
            if isinstance(event, Ended):
                ended = event
            else:
                say(event.text if isinstance(event, Said) else f"runs: {event.where}")
    if stop.signal is not None:
        say("stopped. Repeat the command to find the job again.")
        return
    last = ended.outcomes[-1]
    if last.folder is None:
        raise RuntimeError(f"{last.why}. {ended.error or f'Its output is in {task.log}.'}")
    assert task.log is not None
    lines = task.log.read_text(encoding="utf-8").splitlines() if task.log.is_file() else []
    pages = [k for k, line in enumerate(lines) if line.startswith("kora: page:")]
    if pages and pages[-1]:
        say(lines[pages[-1] - 1].removeprefix("kora: "))  # what it found
    say(f"page:     {last.folder / 'index.html'}")
