"""The file of a search: a grid, with the search for the settings of each entry under `tune`.

base: configs/x.yaml
vary: {config: [configs/adapters/lora.yaml, configs/adapters/bitfit.yaml]}
seeds: [0]                   # a trial trains with each; its value is the mean
tune:
  trials: 12                 # of every combination of `vary`
  sampler: tpe               # or gp, random, or grid (every combination of choices)
  seed: 0                    # of the sampler
  final_seeds: 5             # of the runs with the best settings: a number, or a list
  space:
    model.optimizer.lr: {low: 1e-5, high: 1e-2, log: true}
    model.adapter.dropout: {choices: [0.0, 0.1, 0.3]}
  only_where:                # options that only some strategies have
    model.adapter.dropout: [configs/adapters/lora.yaml]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from kora.console.errors import hint
from kora.grid.file import LAST_SEED, Grid, as_text, grid_of, is_group, read_content, table
from kora.runs.config import plain_name
from kora.runs.config_files import find_named_in

__all__ = ["Dimension", "Sampler", "Tuning", "read_tuning"]

Sampler = Literal["tpe", "gp", "random", "grid"]
_KEYS = ("trials", "sampler", "seed", "final_seeds", "space", "only_where")
_RANGE = ("low", "high", "log")
#: A best value is at the edge of a log range if it is within this share of it from an end.
_EDGE = 0.1
#: Not settings to search: they name or place a run, or say how it is measured.
_NO_SETTINGS = ("experiment", "runs_dir", "seed_everything", "seeds", "leave_out_test", "tune")


@dataclass(frozen=True)
class Dimension:
    """One option that is searched: a range, or a list of values.

    Args:
        option: Dotted name, as `kora fit` takes it.
        low: The smallest value of a range. If both ends are whole numbers, so are the values.
        high: The largest.
        log: Draw the logarithm evenly.
        choices: The values of a list; () for a range.
        files: Only combinations with one of these have the option; None: all of them.
    """

    option: str
    low: float = 0
    high: float = 0
    log: bool = False
    choices: tuple[Any, ...] = ()
    files: tuple[str, ...] | None = None

    @property
    def corners(self) -> tuple[Any, ...]:
        """Both ends of the range, or every choice."""
        return self.choices or (self.low, self.high)

    def from_the_edge(self, value: float) -> float:
        """Decades between a value and the nearer end of a log range."""
        assert self.log
        return min(math.log10(value / self.low), math.log10(self.high / value))

    def at_the_edge(self, value: float) -> bool:
        """Whether a value lies in the outer tenth of a log range, at an end that may move."""
        if not self.log or (self.whole and self.low == 1 and value * value < self.high):
            return False  # below 1 there is no whole number
        return self.from_the_edge(value) < _EDGE * math.log10(self.high / self.low)

    def widened(self, best: Any) -> Dimension:
        """The same, but a log range is a third wider at an end if the best value is at that end.

        Other ranges stay: their ends are limits of the option, such as 0 of a dropout.
        """
        if not self.at_the_edge(best):
            return self
        third = (self.high / self.low) ** (1 / 3)
        low_end = best / self.low < self.high / best
        low = self.low / third if low_end else self.low
        high = self.high if low_end else self.high * third
        if self.whole:
            low, high = max(1, math.floor(low)), math.ceil(high)
        return replace(self, low=low, high=high)

    @property
    def whole(self) -> bool:
        """Whether the range is of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def to_dict(self) -> dict[str, Any]:
        """As in the file; for the record."""
        if self.choices:
            return {"choices": list(self.choices)}
        return {"low": self.low, "high": self.high, "log": self.log}

    def __str__(self) -> str:
        if self.choices:
            return f"{self.option} of {', '.join(map(as_text, self.choices))}"
        return f"{self.option} {self.low:g} to {self.high:g}{' (log)' * self.log}"


@dataclass(frozen=True)
class Tuning:
    """A search as its file describes it.

    Args:
        grid: What is combined; its seeds are those of the trials.
        trials: Of every combination.
        sampler: Of Optuna; `grid` tries every combination of choices.
        seed: Of the sampler, the same for every combination.
        space: What is searched.
        final_seeds: Seeds of the runs with the best settings; no trial has one of them.
    """

    grid: Grid
    trials: int
    sampler: Sampler
    seed: int
    space: tuple[Dimension, ...]
    final_seeds: tuple[int, ...]


def read_tuning(path: Path, overrides: Sequence[str] = (), *, trials: int | None = None) -> Tuning:
    """Read the file of a search; `overrides` change its `set`, `trials` its number of trials.

    Raises:
        ValueError: the file is missing, is not a search, or has a key or value that cannot be used.
    """
    content = read_content(path)
    if "tune" not in content:
        raise ValueError(
            f"{path}: has no 'tune', so there is nothing to search. Add tune: {{trials: 12, space: "
            "{...}} (docs/how-to/tune.md), or run it as it is with kora grid."
        )
    tune = table(path, "tune", content.pop("tune"))
    _known(path, "tune", tune, _KEYS)
    grid = grid_of(path, {"seeds": [0], **content}, overrides)
    if trials is None:
        trials = _whole(path, "tune.trials", tune.get("trials"), least=1)
    elif trials < 1:
        raise ValueError(f"--trials {trials}: expected 1 or more trials of each combination.")
    sampler = tune.get("sampler", "tpe")
    if sampler not in get_args(Sampler):
        raise ValueError(
            f"{path}: tune.sampler is {sampler!r}; expected one of {', '.join(get_args(Sampler))}."
        )
    return Tuning(
        grid=grid,
        trials=trials,
        sampler=sampler,
        seed=_whole(path, "tune.seed", tune.get("seed", 0), least=0),
        space=_space(path, tune, grid),
        final_seeds=_final_seeds(path, tune.get("final_seeds", 5), grid.seeds),
    )


def _space(path: Path, tune: Mapping[str, Any], grid: Grid) -> tuple[Dimension, ...]:
    given = tune.get("space")
    space = table(path, "tune.space", {} if given is None else given)
    only = table(path, "tune.only_where", tune.get("only_where") or {})
    if not space:
        raise ValueError(
            f"{path}: tune.space is empty. Name the options to search, such as "
            "model.optimizer.lr: {low: 1e-5, high: 1e-2, log: true}."
        )
    _known(path, "tune.only_where", only, tuple(space))
    for option in space:
        name, places = plain_name(option), {"vary": grid.vary, "set": grid.options}
        taken = next((key for key, has in places.items() if name in map(plain_name, has)), None)
        if taken:
            raise ValueError(f"{path}: '{option}' is under tune.space and under '{taken}' too.")
        if option in _NO_SETTINGS or is_group(option):
            raise ValueError(f"{path}: '{option}' cannot be searched: it is no setting of a run.")
    where = {option: _files(path, option, files, grid) for option, files in only.items()}
    return tuple(
        _dimension(path, option, given, where.get(option), listed=tune.get("sampler") == "grid")
        for option, given in space.items()
    )


def _dimension(
    path: Path, option: str, given: Any, files: tuple[str, ...] | None, *, listed: bool
) -> Dimension:
    key = f"tune.space.{option}"
    given = table(path, key, given)
    if "choices" in given:
        _known(path, key, given, ("choices",))
        choices = given["choices"]
        plain = isinstance(choices, list) and all(
            value is None or isinstance(value, bool | int | float | str) for value in choices
        )
        if not plain or len({as_text(value) for value in choices}) < max(2, len(choices)):
            raise ValueError(
                f"{path}: {key}.choices is {choices!r}; expected a list of two or more numbers, "
                "words or truth values, each once."
            )
        return Dimension(option, choices=tuple(choices), files=files)
    _known(path, key, given, _RANGE)
    if listed:
        raise ValueError(
            f"{path}: {key} is a range, and sampler: grid tries lists. Give it choices: [...]."
        )
    log = given.get("log", False)
    if not isinstance(log, bool):
        raise ValueError(f"{path}: {key}.log is {log!r}; expected true or false.")
    low, high = (_number(path, f"{key}.{end}", given.get(end)) for end in ("low", "high"))
    if low >= high or (log and low <= 0):
        above = " above 0" * log
        raise ValueError(
            f"{path}: {key} goes from {low:g} to {high:g}; expected low{above} < high."
        )
    return Dimension(option, low, high, log, files=files)


def _files(path: Path, option: str, files: Any, grid: Grid) -> tuple[str, ...]:
    """The files whose combinations have an option; each must be one of the grid."""
    taken = {
        file
        for key, values in grid.vary.items()
        if is_group(key)
        for value in values
        for file in ([value] if isinstance(value, str) else value)
    }
    if not isinstance(files, list) or not files:
        raise ValueError(
            f"{path}: tune.only_where.{option} is {files!r}; expected a list of files under 'vary'."
        )
    found = find_named_in(path, files)
    for file, given in zip(found, files, strict=True):
        if file not in taken:
            raise ValueError(
                f"{path}: tune.only_where.{option} names {given!r}, which is no file under 'vary'."
            )
    return tuple(found)


def _final_seeds(path: Path, given: Any, tuned: Sequence[int]) -> tuple[int, ...]:
    key = "tune.final_seeds"
    if isinstance(given, list):
        seeds = tuple(_whole(path, key, seed, least=0, most=LAST_SEED) for seed in given)
        both = sorted(set(seeds) & set(tuned))
        if both or not seeds or len(set(seeds)) < len(seeds):
            why = (
                f"{both[0]} is a seed of the trials" if both else "expected at least one, each once"
            )
            raise ValueError(
                f"{path}: tune.final_seeds is {given!r}: {why}. The last runs have seeds, and so "
                "few-shot images, that the search has not seen."
            )
        return seeds
    first = max(tuned) + 1
    number = _whole(path, key, given, least=1, most=LAST_SEED + 1 - first)
    return tuple(range(first, first + number))


def _known(path: Path, key: str, given: Mapping[str, Any], names: Sequence[str]) -> None:
    for name in given:
        if name not in names:
            known = f"it may have {', '.join(names)}.{hint(name, names)}"
            raise ValueError(f"{path}: {key} has '{name}'; {known}")


def _whole(path: Path, key: str, value: Any, *, least: int, most: int | None = None) -> int:
    above = isinstance(value, int) and most is not None and value > most
    if isinstance(value, bool) or not isinstance(value, int) or value < least or above:
        range_ = f"from {least} up" if most is None else f"from {least} to {most}"
        raise ValueError(f"{path}: {key} is {value!r}; expected a whole number {range_}.")
    return value


def _number(path: Path, key: str, value: Any) -> float:
    try:
        number = float(value)  # YAML 1.1 takes 1e-5 for a word
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError(f"{path}: {key} is {value!r}; expected a number.")
    return value if isinstance(value, int) else number
