"""Grouping of runs by strategy, by experiment, or by settings with dotted names."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from kora.runs.config import flat
from kora.runs.results import Run
from kora.runs.yaml_files import read_yaml

__all__ = ["NAMED", "Grouping", "brief", "grouping"]

Grouping = Callable[[Run], str]  # the name of a run's group

NAMED = ("strategy", "experiment")
_ABSENT = object()


def grouping(by: str, runs: Sequence[Run]) -> Grouping:
    """A function that gives the name of a run's group.

    Args:
        by: `strategy`, `experiment`, or settings as `kora fit` takes them (`model.adapter.d_comp`),
            separated by commas. The end of a name (`d_comp`) is enough if it is unambiguous, and
            `strategy` and `experiment` may be among them.
        runs: the runs to group. If their strategies vary, the name starts with the strategy; a run
            whose strategy has no such setting is in the group of its strategy.

    Raises:
        ValueError: no run has such a setting, or the name matches several settings of a run.
    """
    if by in NAMED:
        return lambda run: str(getattr(run.result, by))
    named = [key.strip() for key in by.split(",")]
    keys = [key for key in named if key != "strategy"]
    for key in keys:
        if all(_setting(run, key) is _ABSENT for run in runs):
            known = sorted({name for run in runs for name in _settings(run)})
            ends = {name.rpartition(".")[2]: name for name in known}
            near = difflib.get_close_matches(key, [*known, *ends], n=1)
            hint = f" Did you mean {ends.get(near[0], near[0])}?" if near else ""
            raise ValueError(
                f"by is {key!r}, which is no setting of these runs. Use {', '.join(NAMED)}, or a "
                f"dotted name of their config.yaml.{hint}"
            )
    several = "strategy" in named or len({_strategy(run) for run in runs}) > 1

    def group(run: Run) -> str:
        values = {key: _setting(run, key) for key in keys}
        words = [
            f"{k.rpartition('.')[2]}={brief(v)}" for k, v in values.items() if v is not _ABSENT
        ]
        return ", ".join([_strategy(run)] * (several or not words) + words)

    return group


def brief(value: Any) -> str:
    """A setting in a few words: a composer or another object by its class and arguments."""
    if isinstance(value, Mapping) and "class_path" in value:
        inner = ", ".join(f"{k}={brief(v)}" for k, v in (value.get("init_args") or {}).items())
        return str(value["class_path"]).rpartition(".")[2] + (f"({inner})" if inner else "")
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, list) else str(value)


def _strategy(run: Run) -> str:
    """The strategy's name, without the arguments that `load_runs` may have added."""
    return run.result.strategy.partition(" (")[0]


def _setting(run: Run, key: str) -> Any:
    if key in NAMED:
        return getattr(run.result, key)
    settings = _settings(run)
    if key in settings:
        return settings[key]
    found = {name: value for name, value in settings.items() if name.endswith(f".{key}")}
    if len({repr(value) for value in found.values()}) > 1:
        raise ValueError(f"by is {key!r}, which may be {' or '.join(found)}. Name one of them.")
    return next(iter(found.values()), _ABSENT)


def _settings(run: Run) -> Mapping[str, Any]:
    """Every setting of a run by dotted name, from its config.yaml, or else from its record."""
    file = run.folder / "config.yaml"
    if file.is_file():
        return _read(file)
    adapter = run.result.settings.get("adapter", {})
    training = run.result.settings.get("training", {})
    return flat({"model": {**training, "adapter": adapter}, "trainer": training}, objects=True)


@cache
def _read(file: Path) -> Mapping[str, Any]:
    try:
        config = read_yaml(file)
    except ValueError as error:
        raise RuntimeError(f"{error} Or leave this run out, or compare by strategy.") from error
    return flat(config, objects=True) if isinstance(config, Mapping) else {}
