"""Where each run of a grid stands: finished, at work, to resume or to run."""

from __future__ import annotations

import copy
import shlex
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kora.grid.file import SEED_OPTION, Job
from kora.runs.search import (
    config_hash,
    find_at_work,
    find_finished_run,
    last_checkpoint,
)

__all__ = [
    "Entry", "all_resolved", "entry_for", "listed", "refuse_equal", "require_writable", "resolved",
]  # fmt: skip

FINISHED, AT_WORK, RESUME, NEW = "finished", "at work", "to resume", "to run"


@dataclass(frozen=True)
class Entry:
    """One run of a grid and its state.

    Args:
        number: Its place in the grid, from 1.
        job: Name and arguments.
        config: Resolved, in plain types.
        state: `finished`, `at work` (by another process), `to resume` or `to run`.
        folder: Folder of the run; None if it has not started.
    """

    number: int
    job: Job
    config: dict[str, Any]
    state: str
    folder: Path | None


def entry_for(number: int, job: Job, config: dict[str, Any]) -> Entry:
    """Find the state of a run."""
    finished = find_finished_run(config)
    if finished is not None:
        return Entry(number, job, config, FINISHED, finished)
    at_work = find_at_work(config)
    if at_work is not None:
        return Entry(number, job, config, AT_WORK, at_work)
    last = last_checkpoint(config)
    if last is not None:
        return Entry(number, job, config, RESUME, last.parent.parent)
    return Entry(number, job, config, NEW, None)


def resolved(path: Path, job: Job) -> dict[str, Any]:
    """The config of a run in plain types.

    Raises:
        ValueError: the parser rejects it, and has printed the reason.
    """
    from kora.training.lightning_cli import parse  # imports torch

    try:
        return parse(["fit", *job.args]).resolved()
    except SystemExit as stop:
        raise ValueError(
            f"{path}: the options of '{job.name}' are not accepted; the reason is above. "
            f"Nothing was started. The run is: {job.command}"
        ) from stop


def all_resolved(path: Path, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """The configs of runs. Each is parsed once for all seeds, as parsing dominates the start-up.

    Raises:
        ValueError: the parser rejects one of them, and has printed the reason.
    """
    from kora.training.parser import remembering  # imports torch

    known: dict[tuple[str, ...], dict[str, Any]] = {}
    configs = []
    with remembering():
        for job in jobs:
            *rest, last = job.args
            seed = last.removeprefix(SEED_OPTION)
            assert last != seed, "a job ends with its seed"
            if tuple(rest) not in known:
                known[tuple(rest)] = resolved(path, job)
            configs.append({**copy.deepcopy(known[tuple(rest)]), "seed_everything": int(seed)})
    return configs


def require_writable(configs: Iterable[Mapping[str, Any]]) -> None:
    """Make the `runs_dir` of each config, and try it, before any run starts or costs anything.

    Raises:
        RuntimeError: One cannot be made or written.
    """
    for folder in sorted({str(config["runs_dir"]) for config in configs}):
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise RuntimeError(
                f"runs_dir: {folder} cannot be written ({error.strerror}). Choose another folder: "
                "--set runs_dir=FOLDER."
            ) from error


def refuse_equal(path: Path, jobs: Sequence[Job], configs: Sequence[dict[str, Any]]) -> None:
    """Refuse two jobs with the same config: they would be one run that counts twice.

    Raises:
        ValueError: Two jobs are equal; names both.
    """
    seen: dict[tuple[str, str], str] = {}
    for job, config in zip(jobs, configs, strict=True):
        twin = seen.setdefault((str(config["runs_dir"]), config_hash(config)), job.name)
        if twin != job.name:
            raise ValueError(
                f"{path}: '{twin}' and '{job.name}' are the same run. Leave out values under "
                "'vary' that change nothing."
            )


def listed(entry: Entry) -> str:
    """The line of a run for `--dry_run`."""
    head = f"{entry.state:<9}  {entry.job.name}: "
    if entry.state == NEW:
        return head + entry.job.command
    if entry.state == RESUME:
        assert entry.folder is not None
        last = last_checkpoint(entry.config)
        return head + shlex.join(("kora", "fit", *entry.job.args, "--ckpt_path", str(last)))
    return head + str(entry.folder)
