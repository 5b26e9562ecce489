"""Runs of a grid that differ in seed and learning rates alone, as one batched fit in a child."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from kora.console.say import say
from kora.grid.dispatch import last_error
from kora.grid.launchers.job import ENDED
from kora.grid.plan import NEW, Entry
from kora.grid.run import share_of_threads
from kora.runs.config import flat
from kora.runs.durable import read_json, write_text
from kora.runs.processes import Stop, run_child

__all__ = ["TRAIN_LIST", "answer_to", "ended_of", "groups_of", "train_together"]

#: The option with which `kora grid` and `kora tune` start a process that trains a list together;
#: only they use it.
TRAIN_LIST = "--train_list"


def groups_of(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Runs that are to start and may train together, two or more in a group."""
    from kora.training.together import RATES_AND_SEED  # imports torch, as parsing them did

    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.state == NEW:
            settings = flat(entry.config).items()
            shared = {key: value for key, value in settings if key not in RATES_AND_SEED}
            groups.setdefault(json.dumps(shared, default=str), []).append(entry)
    return [group for group in groups.values() if len(group) > 1]


def train_together(
    entries: Sequence[Entry], *, jobs: int, logs: Path, env: Mapping[str, str], stop: Stop
) -> None:
    """Finish the runs that can train together, and say why others cannot.

    Args:
        entries: The runs of a grid.
        jobs: Groups that train at once.
        logs: Folder for the lists of runs and, for several jobs, the output of each group.
        env: Environment of their processes.
        stop: Checked meanwhile.
    """
    groups = groups_of(entries)
    if not groups:
        say("no two runs differ in seed and learning rates alone, so each trains by itself.")

    def trained(number: int, group: Sequence[Entry]) -> str:
        if stop.signal is not None:
            return ""
        say(f"together, if possible: {_listed(group)}")
        path = logs / f"together_{number:03d}.json"
        asked = {"runs": [list(entry.job.args) for entry in group]}
        log = path.with_suffix(".log") if jobs > 1 else None
        share = share_of_threads(jobs, env)
        told = answer_to("grid", path, asked, log=log, env=share, stop=stop)
        why = told.get("why") if stop.signal is None else None
        return why or ""

    with ThreadPoolExecutor(jobs) as pool:
        whys = pool.map(trained, range(1, len(groups) + 1), groups)
        for group, why in zip(groups, whys, strict=True):
            if why:
                say(f"one by one: {_listed(group)}: {why}.")


def answer_to(
    command: str, path: Path, asked: Mapping[str, Any], *, log: Path | None,
    env: Mapping[str, str], stop: Stop,
) -> dict[str, Any]:  # fmt: skip
    """What a child of this process answers that trains the runs of a list.

    Args:
        command: `grid` or `tune`.
        path: Where the list is written.
        asked: The list.
        log: For the output of the child; None: that of this process.
        env: Its environment.
        stop: Checked while it runs.

    Returns:
        Its answer, which has `why` if they were not trained.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(asked))
    ended_of(path).unlink(missing_ok=True)
    with nullcontext() if log is None else log.open("wb") as output:
        args = [command, TRAIN_LIST, str(path)]
        run_child(args, stop=stop, env=env, output=output, more_follow=True)
    try:
        told: dict[str, Any] = read_json(
            ended_of(path), remedy="Repeat the command, which trains them again."
        )
    except FileNotFoundError:
        text = "" if log is None else log.read_text(errors="replace")
        error = last_error(text).removeprefix("kora: error: ")
        where = "its output is above" if log is None else f"see {log}"
        return {"why": error or f"the process ended without a result ({where})"}
    return told


def ended_of(path: Path) -> Path:
    """The file with what came of a list."""
    return path.with_suffix(ENDED)


def _listed(group: Sequence[Entry]) -> str:
    return f"{len(group)} runs, {group[0].job.name} to {group[-1].job.name}"
