"""Selection of runs for a comparison: finished ones, named by their arguments, the newest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kora.compare.grouping import Grouping, brief
from kora.runs.config import with_defaults
from kora.runs.results import RESULTS_NAME, Run, find_runs, read_results, walk

__all__ = ["load_runs", "newest"]


def load_runs(paths: Iterable[str | Path]) -> tuple[list[Run], list[str]]:
    """All readable, finished runs under `paths`, and a sentence on each that is left out.

    Raises:
        ValueError: no run is left; the message lists every reason.
    """
    folders: dict[Path, Path] = {}  # by resolved path: a run that is named twice counts once
    notes: list[str] = []
    for path in map(Path, paths):
        try:
            for folder in find_runs([path]):
                folders.setdefault(folder.resolve(), folder)
        except (OSError, ValueError) as error:
            notes.append(str(error))
            continue
        for folder, files in walk(path):
            if folder.name.startswith("version_") and RESULTS_NAME not in files:
                notes.append(f"{folder}: has no {RESULTS_NAME} (unfinished); left out.")
    runs: list[Run] = []
    for folder in folders.values():
        try:
            run = Run(folder, read_results(folder))
        except (OSError, RuntimeError, ValueError) as error:
            notes.append(str(error))
            continue
        if any(run.result == other.result for other in runs):
            continue  # a copy, such as W&B's copy of a run that is here too
        if run.result.finished:
            runs.append(run)
        else:
            notes.append(f"{folder}: was stopped before its planned end; left out.")
    runs = _named_apart(runs)
    if not runs:
        raise ValueError("There is no run to compare.\n" + "\n".join(f"  - {n}" for n in notes))
    return runs, notes


def _named_apart(runs: Sequence[Run]) -> list[Run]:
    """Name runs of one strategy by the arguments that differ: `LoRA (sites=[q, v])`."""
    kinds: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        kinds.setdefault((run.result.experiment, run.result.strategy), []).append(run)
    named = {}
    for same in kinds.values():
        arguments = _arguments(same)
        first = arguments[0]
        varied = {k for each in arguments for k in first | each if each.get(k) != first.get(k)}
        for (folder, result), mine in zip(same, arguments, strict=True):
            differing = [key for key in mine if key in varied]
            if differing:
                text = ", ".join(f"{key}={brief(mine[key])}" for key in differing)
                result = replace(result, strategy=f"{result.strategy} ({text})")
            named[folder] = Run(folder, result)
    return [named[run.folder] for run in runs]


def _arguments(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The arguments of the adapters, with defaults for options that earlier versions lacked."""
    adapters = [run.result.settings.get("adapter", {}) for run in runs]
    if any(adapter != adapters[0] for adapter in adapters):  # else no need to import strategies
        adapters = [with_defaults(adapter) for adapter in adapters]
    return [adapter.get("init_args", {}) for adapter in adapters]


def newest(runs: Sequence[Run], group: Grouping) -> tuple[list[Run], list[str]]:
    """The newest run of every group, stage and seed, and a note if there were several."""
    cells: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        r = run.result
        cells.setdefault((group(run), r.strategy, r.stage, r.seed), []).append(run)
    chosen, notes = [], []
    for (name, _, _, seed), same in cells.items():
        same.sort(key=lambda run: (run.result.created, _version(run.folder)))
        chosen.append(same[-1])
        if len(same) > 1:
            notes.append(
                f"{name}, seed {seed}: {len(same)} versions; {same[-1].folder} is the newest and "
                f"the only one used.{_differing(same)}"
            )
    chosen.sort(key=lambda run: -1 if run.result.seed is None else run.result.seed)
    return chosen, notes


def _differing(runs: Sequence[Run]) -> str:
    """A sentence on the settings in which versions of one run differ."""
    found: dict[str, None] = {}
    for part in ("adapter", "training"):
        tables = [run.result.settings.get(part, {}) for run in runs]
        for key in dict.fromkeys(key for table in tables for key in table):
            if len({repr(table.get(key)) for table in tables}) > 1:
                found[f"{part}.{key}"] = None
    return f" They differ in {', '.join(found)}." if found else ""


def _version(folder: Path) -> int:
    number = folder.name.rpartition("_")[2]
    return int(number) if number.isdecimal() else -1
