"""The record of one run: what ran, on which protocol, and the results.

A run is a folder, `runs/<experiment>/<strategy>/seed<k>/version_<n>/`, and `results.json` in it is
this record. It is written last and in one piece, so a folder without it is an unfinished run.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import kora
from kora.runs.durable import has_other_content, record_sha256, write_text
from kora.runs.provenance import collect_versions, git_commit
from kora.runs.record_types import check_types

__all__ = [
    "RESULTS_NAME",
    "SCHEMA",
    "Run",
    "RunResult",
    "claim_version",
    "find_runs",
    "read_results",
    "run_versions",
    "walk",
    "write_results",
]

RESULTS_NAME = "results.json"
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One run, in plain types.

    Args:
        experiment: name that all strategies and seeds of one comparison share.
        strategy: name of the adapter strategy.
        stage: `fit` (trained, then tested once) or `test` (tested only).
        seed: seed of the run; None when none was set.
        metrics: values by `stage/name`, such as `test/accuracy`; rates lie in [0, 1].
        baselines: scores without learning by kind (`chance` and `majority`, or `mean_depth` and
            `mean_map`) and metric name without stage.
        protocol: how the data was split, as the data module states it; where predictions can be
            measured in several ways, `evaluation` says in which.
        audit: findings of `kora.reports.audit`.
        parameters: `trainable`, `total`, `percent`, and `head` (trainable ones of the head).
        seconds: wall-clock seconds by phase (`fit`, `test`, ...).
        peak_memory_mib: peak memory of the device (of the process on a CPU); None if unknown.
        backbone: `name`, `weights` and `sha256` of the weights.
        source: the adapter that a transfer started from; None without one.
        settings: `adapter` (class path and arguments) and `training` (optimiser, schedule, length).
        config_sha256: hash of the parts of the resolved config that affect the result
            (`kora.runs.search.config_hash`); None in the first records.
        feature_cache: `dtype`, `splits` and size of the cached features that training read, and
            the `seconds` to compute them, which `fit` does not count; None if it read images.
        tested_step: optimiser steps behind the weights that were tested; None if nothing was
            tested, and in records of earlier versions.
        together: number of runs that trained with it as one batched fit (`kora grid --together`);
            then it has no seconds of `fit` and no memory of its own. None if it trained alone.
        versions: of Python and the packages that matter.
        commit: of the source tree of `kora`; None for an installed package.
        created: ISO 8601, UTC.
        finished: whether the run reached its planned end.
        schema: version of this record.
    """

    experiment: str
    strategy: str
    stage: str
    seed: int | None
    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]
    protocol: dict[str, Any]
    audit: dict[str, Any]
    parameters: dict[str, Any]
    seconds: dict[str, float]
    peak_memory_mib: float | None
    backbone: dict[str, Any]
    source: dict[str, Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    config_sha256: str | None = None
    feature_cache: dict[str, Any] | None = None
    tested_step: int | None = None
    together: int | None = None
    versions: dict[str, str] = field(default_factory=collect_versions)
    commit: str | None = field(default_factory=git_commit)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    finished: bool = True
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """Plain types for strict JSON; a value that is not finite becomes None.

        Raises:
            TypeError: a value is of a type that JSON does not have; names its key.
        """
        names = ["schema", *(f.name for f in fields(self) if f.name != "schema")]
        return {name: _plain(getattr(self, name), name) for name in names}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> RunResult:
        """The inverse of `to_dict`; a metric of None is NaN, and unknown keys are left out.

        Raises:
            ValueError: another schema version, a missing key, or a value of the wrong type.
        """
        if record.get("schema") != SCHEMA:
            raise ValueError(
                f"schema version is {record.get('schema')!r}, and this KoRA ({kora.__version__}) "
                f"reads version {SCHEMA}. Read it with the KoRA that wrote it, or run it again."
            )
        new: dict[str, Any] = {
            "settings": {}, "config_sha256": None, "feature_cache": None, "tested_step": None,
            "together": None,
        }  # fmt: skip
        record = {**new, **record}  # not in the first records
        known = [f.name for f in fields(cls)]
        missing = [name for name in known if name not in record]
        if missing:
            raise ValueError(f"key {missing[0]!r} is missing.")
        values = {name: record[name] for name in known}
        check_types(values, _TYPES, _TYPES_OR_NONE)
        values["metrics"] = {
            name: math.nan if value is None else float(value)
            for name, value in values["metrics"].items()
        }
        return cls(**values)


_TYPES = {
    "a text": "experiment strategy stage created settings.adapter.class_path",
    "a table of values": "metrics baselines baselines.* protocol audit parameters seconds backbone "
    "settings versions settings.adapter settings.adapter.init_args settings.training",
    "a number below 1e100": "seconds.*",
    "a whole number below 1e100": "protocol.sizes.* protocol.evaluated_images.*",
    "true or false": "finished",
}
_TYPES_OR_NONE = {
    "a text": "config_sha256 commit",
    "a table of values": "source feature_cache protocol.sizes protocol.evaluated_images "
    "protocol.subset protocol.evaluation",
    "a number below 1e100": "metrics.* baselines.*.* peak_memory_mib parameters.percent "
    "protocol.subset.fraction protocol.subset.per_class",
    "a whole number below 1e100": "seed tested_step together parameters.trainable parameters.total",
}


class Run(NamedTuple):
    """A run's folder and its record."""

    folder: Path
    result: RunResult


def write_results(run_dir: str | Path, result: RunResult) -> Path:
    """Write `results.json` into the run's folder, atomically; returns its path."""
    record = result.to_dict()
    record["record_sha256"] = record_sha256(record)
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    return write_text(Path(run_dir) / RESULTS_NAME, text)


def read_results(run_dir_or_file: str | Path) -> RunResult:
    """The record of a run, from its folder or from the file itself.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: the folder is not a finished run, or the schema is of another version.
        RuntimeError: the file is damaged.
    """
    path = Path(run_dir_or_file)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder. `kora fit` prints the folder of its run.")
    if path.is_dir():
        folder, path = path, path / RESULTS_NAME
        if not path.is_file():
            raise ValueError(_why_no_results(folder))
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # covers undecodable bytes and bad JSON
        raise RuntimeError(f"{path}: damaged, not readable as JSON ({error}). {_AGAIN}") from error
    if not isinstance(record, dict):
        raise RuntimeError(f"{path}: holds {type(record).__name__}, not a run's record. {_AGAIN}")
    if has_other_content(record):
        raise RuntimeError(
            f"{path}: damaged or edited: its content does not match its record_sha256. Copy it "
            "again or run it again; to keep an edit, delete the key record_sha256."
        )
    try:
        return RunResult.from_dict(record)
    except ValueError as error:
        if record.get("schema") == SCHEMA:
            raise RuntimeError(f"{path}: {error} {_AGAIN}") from error
        raise ValueError(f"{path}: {error}") from error


_AGAIN = "Run it again, or leave this run out."


def _why_no_results(folder: Path) -> str:
    if any((folder / name).exists() for name in ("config.yaml", "metrics.csv", "checkpoints")):
        return (
            f"{folder}: a run without {RESULTS_NAME}: it is still running, or was stopped before "
            "its end. Let it finish (kora fit --resume RUN resumes it), or leave it out."
        )
    return (
        f"{folder}: there is no run here (no {RESULTS_NAME}). Give a run's folder, such as "
        "runs/<experiment>/<strategy>/seed0/version_0, or one above runs."
    )


def run_versions(parent: Path) -> dict[int, Path]:
    """The folders `version_<n>` directly below `parent`, by n, ascending."""
    numbers = (p.name.removeprefix("version_") for p in parent.glob("version_*"))
    return {n: parent / f"version_{n}" for n in sorted(int(n) for n in numbers if n.isdecimal())}


def claim_version(parent: Path) -> Path:
    """Make the next free folder `version_<n>` below `parent`, which nobody else then gets."""
    parent.mkdir(parents=True, exist_ok=True)
    number = max(run_versions(parent), default=-1) + 1
    while True:
        folder = parent / f"version_{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """Folders of all finished runs at or under `paths`, each once, sorted by version number.

    A path may be a run, a folder above runs, or a results file.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: there is no finished run at or under a path.
    """
    found: set[Path] = set()
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such folder. Give a run, or a folder above runs.")
        if path.is_file():
            found.add(path.parent)
            continue
        hits = 0
        for folder, files in walk(path):
            if RESULTS_NAME in files:
                found.add(folder)
                hits += 1
        if not hits:
            raise ValueError(_why_no_results(path))
    return sorted(found, key=_natural)


def walk(top: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders at and under `top` with their files, but none inside a run; links are followed."""
    seen: set[str] = set()
    for folder, subfolders, files in os.walk(top, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        yield Path(folder), files
        # What lies in a run is its own, such as W&B's copy of its results.
        inside = RESULTS_NAME in files or os.path.basename(folder).startswith("version_")
        subfolders[:] = [] if inside else sorted(n for n in subfolders if not n.startswith("."))


def _natural(path: Path) -> list[tuple[str, int]]:
    """Sort key that puts version_10 after version_9."""
    pairs = re.findall(r"([^0-9]*)([0-9]*)", str(path))
    return [(text, int(number or -1)) for text, number in pairs]


def _plain(value: Any, key: str) -> Any:
    """Copy into JSON's types. NumPy and torch scalars become numbers, paths become strings."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{key}[{place}]") for place, item in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return _plain(value.item(), key)
    raise TypeError(f"{key} is of type {type(value).__name__}, which JSON does not have.")
