"""The combinations of a search, each with its search space.

Before anything runs, the parser checks every combination at every end of its search space.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from kora.grid.file import SEED_OPTION, Job, as_text, file_name
from kora.grid.plan import refuse_equal, resolved
from kora.runs.search import config_hash
from kora.tune.file import Dimension, Tuning

__all__ = ["Combination", "combinations"]


@dataclass(frozen=True)
class Combination:
    """One entry of the grid, whose settings are searched.

    Args:
        name: For readers.
        slug: The name in names of files.
        files: Its configs, in their order; later ones win.
        varied: Its options under `vary`.
        options: Further arguments of `kora fit`, from `vary` and `set`.
        space: Its search space.
        config: Resolved, in plain types, at one corner of the space.
        metric: The validation metric to optimise.
        mode: `max` or `min`.
        seeds: Seeds of each trial.
    """

    name: str
    slug: str
    files: tuple[str, ...]
    varied: tuple[str, ...]
    options: tuple[str, ...]
    space: tuple[Dimension, ...]
    config: dict[str, Any] = field(default_factory=dict)
    metric: str = ""
    mode: str = "max"
    seeds: tuple[int, ...] = (0,)

    @property
    def experiment(self) -> str:
        """Experiment of the runs with the best settings."""
        return str(self.config["experiment"])

    def args(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        """Arguments of `kora fit` with settings of the space."""
        files = [part for file in self.files for part in ("--config", file)]
        tried = [f"--{option}={as_text(value)}" for option, value in values.items()]
        return (*files, *self.options, *tried)

    def job(self, trial: int, values: Mapping[str, Any], seed: int) -> Job:
        """One run of a trial, without the test."""
        name = f"{self.name}, trial {trial}" + (f", seed {seed}" if len(self.seeds) > 1 else "")
        apart = (
            f"--experiment={self.experiment}_tune",
            "--leave_out_test=true",
            "--pictures=false",
        )
        args = (*self.args(values), *apart, f"{SEED_OPTION}{seed}")
        return Job(name, args, self.name)

    def study(self, tuning: Tuning) -> str:
        """Name of its study, which changes with anything that its trials have in common."""
        space = {one.option: one.to_dict() for one in self.space}
        essence = [space, config_hash(self.config), tuning.sampler, tuning.seed, self.seeds]
        essence.append(self.metric)
        return f"{self.slug}-{hashlib.sha256(json.dumps(essence).encode()).hexdigest()[:8]}"


def combinations(path: Path, tuning: Tuning) -> list[Combination]:
    """Every combination of a search, accepted by the parser.

    Raises:
        ValueError: one is not accepted, or has nothing to search or no validation.
    """
    from kora.training.parser import remembering  # imports torch

    grid = tuning.grid
    first = [job for job in grid.jobs() if job.args[-1] == f"{SEED_OPTION}{grid.seeds[0]}"]
    slugs: list[str] = []
    known: set[str] = set()
    found = []
    with remembering():
        for job in first:
            *args, _ = job.args
            files = tuple(args[at + 1] for at, word in enumerate(args) if word == "--config")
            options = tuple(args[2 * len(files) :])
            varied = tuple(
                key for key in grid.vary if any(o.startswith(f"--{key}=") for o in options)
            )
            space = tuple(one for one in tuning.space if _has(one, files))
            if not space:
                raise ValueError(
                    f"{path}: '{job.kind}' has nothing to search: tune.only_where leaves it none "
                    "of the options of tune.space. Give it one, or leave it out of 'vary'."
                )
            plain = Combination(
                job.kind or path.stem, _slug(job.kind or path.stem, slugs), files, varied, options,
                space, seeds=grid.seeds,
            )  # fmt: skip
            found.append(_checked(path, plain, tuning, known))
    refuse_equal(path, first, [one.config for one in found])
    return found


def _has(one: Dimension, files: Sequence[str]) -> bool:
    return one.files is None or any(file in one.files for file in files)


def _slug(name: str, taken: list[str]) -> str:
    slug = text = file_name(name)[:80]
    number = 2
    while slug in taken:
        slug, number = f"{text}-{number}", number + 1
    taken.append(slug)
    return slug


def _checked(path: Path, plain: Combination, tuning: Tuning, known: set[str]) -> Combination:
    """Add config and metric, after every corner of the space has parsed.

    `known` are the kinds of model whose corners need not be parsed again.
    """
    seed = f"{SEED_OPTION}{tuning.grid.seeds[0]}"

    def at(corner: int) -> dict[str, Any]:
        values = {d.option: d.corners[min(corner, len(d.corners) - 1)] for d in plain.space}
        return resolved(path, Job(plain.name, (*plain.args(values), seed)))

    config = at(0)
    data = str(config["data"]["class_path"])
    kind = json.dumps([config["model"], data, [str(one) for one in plain.space]])
    for corner in range(1, 0 if kind in known else max(len(d.corners) for d in plain.space)):
        at(corner)
    known.add(kind)
    metric, mode = _monitor(config)
    _require_validation(path, plain.name, config)
    return replace(plain, config=config, metric=f"best_{metric}", mode=mode)


def _monitor(config: Mapping[str, Any]) -> tuple[str, str]:
    """The metric and mode by which the task chooses its checkpoints."""
    module, _, name = str(config["model"]["class_path"]).rpartition(".")
    monitor: tuple[str, str] = getattr(import_module(module), name).monitor
    return monitor


def _require_validation(path: Path, name: str, config: Mapping[str, Any]) -> None:
    data, trainer = config["data"].get("init_args") or {}, config["trainer"]
    images = data.get("val_images")
    without = images == 0 or (images is None and data.get("val_fraction") == 0)
    for wrong, what, remedy in (
        (without, "no validation split", "Set data.val_images or data.val_fraction above 0"),
        (trainer["limit_val_batches"] == 0, "trainer.limit_val_batches: 0", "Leave it out"),
        (trainer["enable_checkpointing"] is False, "trainer.enable_checkpointing: false",
         "Leave it out"),
        (trainer["fast_dev_run"], "trainer.fast_dev_run, which leaves no record", "Leave it out"),
    ):  # fmt: skip
        if wrong:
            raise ValueError(
                f"{path}: '{name}' has {what}, but a search compares trials by validation, "
                f"never by the test. {remedy}."
            )
