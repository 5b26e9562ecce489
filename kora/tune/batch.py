"""Trials of a search as one batched fit on cached features, in a process of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from kora.grid.batch import answer_to
from kora.runs.processes import Stop
from kora.tune.study import Search, Trial

__all__ = ["Scored", "Together", "trainer_of_batches"]


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
        rows = [[one.job(t.number, t.values, seed).args for seed in one.seeds] for t in trials]
        asked = {"metric": one.metric, "trials": rows}
        told = answer_to(
            "tune", logs / f"{name}.json", asked, log=logs / f"{name}.log", env=env, stop=stop
        )
        return Scored(told.get("scores", []), told.get("seconds", 0.0), told.get("why", ""))

    return train
