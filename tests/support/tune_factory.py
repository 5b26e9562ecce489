"""Searches whose studies are real and whose trials are told by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kora.grid.file import Grid
from kora.tune.file import Dimension, Sampler, Tuning
from kora.tune.plan import Combination
from kora.tune.study import Search, opened

__all__ = ["DROPOUT", "RATE", "combination", "searches", "tuning"]

RATE = Dimension("model.optimizer.lr", 1e-4, 1e-1, log=True)
DROPOUT = Dimension("model.adapter.dropout", choices=(0.0, 0.1, 0.3))


def tuning(trials: int = 6, *, sampler: Sampler = "tpe", seed: int = 0) -> Tuning:
    """Of one seed for the trials and two for what they find."""
    return Tuning(Grid((), {}, (0,), {}), trials, sampler, seed, (RATE, DROPOUT), (1, 2))


def combination(
    name: str = "LoRA", space: tuple[Dimension, ...] = (RATE, DROPOUT), *, mode: str = "max"
) -> Combination:
    """As far as a study looks at it."""
    config = {"trainer": {}, "experiment": "tiny", "runs_dir": "runs"}
    metric = "best_val/accuracy" if mode == "max" else "best_val/rmse_m"
    return Combination(name, name, (), (), (), space, config, metric, mode)


@contextmanager
def searches(
    folder: Path, *found: Combination, given: Tuning | None = None
) -> Iterator[list[Search]]:
    """Opened as a command does; LoRA alone by default."""
    with opened(folder, found or (combination(),), given or tuning()) as opened_here:
        yield opened_here
