"""Trials of a search as one batched fit on cached features, in a process of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from kora.grid.dispatch import last_error
from kora.grid.launchers.job import ENDED
from kora.runs.durable import read_json, write_text
from kora.runs.processes import Stop, run_child
from kora.tune.study import Search, Trial

__all__ = ["TOGETHER", "Scored", "Together", "ended_of", "trainer_of_batches"]

#: The option with which `kora tune` starts that process; only it uses it.
TOGETHER = "--train_list"


class Scored(NamedTuple):
    """What came of the trials of a batch.

    Args:
        scores: Best score in validation of each; None if it is not a finite number.
        seconds: Of all together.
        why: Why they cannot train together; then there are no scores.
    """

    scores: Sequence[float | None]
    seconds: float = 0.0
    why: str = ""


#: Trains trials of a search together.
Together = Callable[[Search, Sequence[Trial]], Scored]


def trainer_of_batches(logs: Path, env: Mapping[str, str], stop: Stop) -> Together:
    """Trains the trials of a batch in a child of this process, whose output goes into a log."""

    def train(search: Search, trials: Sequence[Trial]) -> Scored:
        one = search.combination
        name = f"{one.slug}_{trials[0].number:03d}_to_{trials[-1].number:03d}"
        path, log = logs / f"{name}.json", logs / f"{name}.log"
        rows = [[one.job(t.number, t.values, seed).args for seed in one.seeds] for t in trials]
        write_text(path, json.dumps({"metric": one.metric, "trials": rows}))
        ended_of(path).unlink(missing_ok=True)
        with log.open("wb") as output:
            args = ["tune", TOGETHER, str(path)]
            run_child(args, stop=stop, env=env, output=output, more_follow=True)
        try:
            told = read_json(ended_of(path), remedy="Repeat the command, which trains them again.")
        except FileNotFoundError:
            error = last_error(log.read_text(errors="replace")).removeprefix("kora: error: ")
            return Scored([], why=error or f"the process ended without a result (see {log})")
        return Scored(told.get("scores", []), told.get("seconds", 0.0), told.get("why", ""))

    return train


def ended_of(path: Path) -> Path:
    """The file with what came of a list of trials."""
    return path.with_suffix(ENDED)
