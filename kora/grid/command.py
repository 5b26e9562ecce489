"""`kora grid`: the runs of a grid file, each once, and then their comparison."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kora.console.say import say
from kora.grid.batch import TRAIN_LIST, train_together
from kora.grid.dispatch import Ended, Task, dispatch
from kora.grid.file import Grid, is_group, read_grid
from kora.grid.options import (
    add_file_options,
    add_launcher_options,
    fill_launcher_options,
    launcher,
    picked,
    queue_of,
)
from kora.grid.plan import (
    AT_WORK,
    FINISHED,
    NEW,
    RESUME,
    Entry,
    all_resolved,
    entry_for,
    listed,
    refuse_equal,
    require_writable,
)
from kora.grid.run import Outcome, log_folder, log_path
from kora.grid.view import GridView
from kora.runs.config import flat, plain_name
from kora.runs.processes import Stop, start_server
from kora.training.config_lock import is_taken

__all__ = ["grid", "grid_parser"]


def grid(args: Sequence[str]) -> None:
    """Run the unfinished runs of a grid, then compare all.

    Raises:
        ValueError: the grid or one of its runs is not accepted; nothing was started.
        RuntimeError: some runs failed; the others have run.
    """
    if args[:1] == [TRAIN_LIST]:
        from kora.grid.together import train_list  # imports torch

        train_list(Path(args[1]))
        return
    own = _options(args)
    path = Path(own.config)
    environment = dict(os.environ)  # before parsing sets a seed, which no run may inherit
    planned = read_grid(path, own.overrides)
    if own.launcher == "local" and not own.dry_run:
        start_server()  # it imports torch while this process does
    entries = _plan(path, planned, own.only)
    of = f" of {len(planned.jobs())}" if own.only else ""
    _say_where_it_stands(path, entries, of)
    finished = sum(entry.state == FINISHED for entry in entries)
    if own.together and not own.dry_run:
        entries = _together(path, own, entries, environment)
    # Runs of other processes come last: they may be finished by then.
    waiting = sorted((e for e in entries if e.state != FINISHED), key=lambda e: e.state == AT_WORK)
    if own.dry_run:
        for entry in entries:
            print(listed(entry))
        queue = queue_of(own)
        if queue is not None and waiting:
            print(queue.shown([_task(entry, _log(path, entry)) for entry in waiting]))
        return
    require_writable(entry.config for entry in waiting)
    logs = _logs(path, own, waiting)
    ends = _run(own, entries, waiting, logs, environment) if waiting else {}
    found = {
        ends[e.number].outcomes[-1].folder if e.number in ends else e.folder: e for e in entries
    }
    failed = [end for end in ends.values() if end.outcomes[-1].folder is None]
    say(
        f"{len(entries) - finished - len(failed)} runs done, {finished} were finished before, "
        f"{len(failed)} failed."
    )
    _compare({f: e for f, e in found.items() if f is not None}, tuple(planned.vary))
    if failed:
        lines = "\n".join(f"  - {_failure(end, logs)}" for end in failed)
        where = "their messages are in the logs" if logs else "their messages are above"
        raise RuntimeError(
            f"{len(failed)} of {len(entries)} runs failed; {where}. The same command tries them "
            f"again.\n{lines}"
        )


def grid_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="kora grid",
        description="Run every combination of a grid file with every seed. Finished runs are "
        "skipped and unfinished ones resumed, so repeat the command after a stop.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", "-c", required=True, metavar="FILE", help="the grid")
    parser.add_argument(
        "--dry_run", "--dry-run", action="store_true", help="list the runs and start none"
    )
    add_file_options(parser, "the runs")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N",
        help="runs at once on this machine; they share its cores, and each has a log file",
    )  # fmt: skip
    parser.add_argument(
        "--together", action="store_true",
        help="first train runs that differ in seed and learning rates alone as one batched fit, "
        "if their features are cached; they have no checkpoints, seconds and memory of their own",
    )  # fmt: skip
    add_launcher_options(parser, "run")
    return parser


def _options(args: Sequence[str]) -> argparse.Namespace:
    own = grid_parser().parse_args(args)
    if own.jobs < 1:
        raise ValueError(f"--jobs {own.jobs}: expected 1 or more runs at once.")
    if own.launcher != "local" and own.jobs != 1:
        raise ValueError(
            f"--jobs is for this machine alone. With --launcher {own.launcher}, the cores of the "
            "cluster and --num_cpus decide how many runs there are at once. Leave --jobs out."
        )
    if own.launcher != "local" and own.together:
        raise ValueError(
            f"--together is for this machine alone, and --launcher {own.launcher} runs elsewhere. "
            "Leave one of them out."
        )
    fill_launcher_options(own)
    return own


def _plan(path: Path, planned: Grid, only: Sequence[str]) -> list[Entry]:
    jobs = planned.jobs()
    names = picked(path, "run", {job.name: job.kind or job.name for job in jobs}, only)
    configs = all_resolved(path, jobs)
    refuse_equal(path, jobs, configs)
    pairs = enumerate(zip(jobs, configs, strict=True), 1)
    return [entry_for(n, job, config) for n, (job, config) in pairs if job.name in names]


def _say_where_it_stands(path: Path, entries: Sequence[Entry], of: str) -> None:
    counts = {s: sum(e.state == s for e in entries) for s in (FINISHED, RESUME, AT_WORK, NEW)}
    others = ", ".join(f"{n} {s}" for s, n in counts.items() if n and s != FINISHED)
    rest = f" ({others})" if others else ""
    say(f"{path}: {len(entries)}{of} runs, {counts[FINISHED]} of them finished{rest}.")


def _together(
    path: Path, own: argparse.Namespace, entries: Sequence[Entry], environment: dict[str, str]
) -> list[Entry]:
    """Train those that can train together; exits here after a signal."""
    new = [entry.config for entry in entries if entry.state == NEW]
    if not new:
        return list(entries)
    require_writable(new)
    with Stop.on_signals() as stop:
        logs = log_folder(path, new[0]["runs_dir"])
        train_together(entries, jobs=own.jobs, logs=logs, env=environment, stop=stop)
    _end_if_stopped(stop)
    return [entry_for(one.number, one.job, one.config) for one in entries]


def _end_if_stopped(stop: Stop) -> None:
    if stop.signal is not None:
        say("stopped. Repeat the command to resume the runs that are not finished.")
        sys.exit(stop.exit_code)


def _logs(path: Path, own: argparse.Namespace, waiting: Sequence[Entry]) -> dict[int, Path]:
    """The log file of each run; none if runs print here, one after another."""
    if own.launcher == "local" and own.jobs == 1:
        return {}
    logs = {e.number: _log(path, e) for e in waiting}
    for folder in dict.fromkeys(log.parent for log in logs.values()):
        say(f"the output of the runs goes into {folder}")
    return logs


def _log(path: Path, entry: Entry) -> Path:
    return log_path(path, entry.job, entry.number, entry.config["runs_dir"])


def _task(entry: Entry, log: Path | None) -> Task:
    return Task(replace(entry, folder=None), [(entry.job, entry.config)], log)


def _run(
    own: argparse.Namespace,
    entries: Sequence[Entry],
    waiting: Sequence[Entry],
    logs: dict[int, Path],
    environment: dict[str, str],
) -> dict[int, Ended]:
    """Run what is not finished; exits here after a signal."""
    at_once = own.jobs if own.launcher == "local" else None
    view = GridView(entries, at_once=at_once, live=bool(logs))
    rest = list(waiting)
    ends = {e.number: Ended(e, [Outcome(None, "stopped")]) for e in waiting}

    def give() -> Task | None:
        if not rest:
            return None
        entry = rest[0]
        if at_once is not None:  # a cluster gets all of them at once, in any order
            entry = next((one for one in rest if not _is_elsewhere(one)), entry)
        rest.remove(entry)
        return _task(entry, logs.get(entry.number))

    def ended(one: Ended) -> None:
        ends[one.entry.number] = one
        if stop.signal is None or one.outcomes[-1].folder is not None:
            view.ended(one.entry, one.outcomes[-1])

    with (
        Stop.on_signals() as stop,
        launcher(own, environment, stop, at_once=at_once) as where,
        view,
    ):
        dispatch(give, ended, where, view=view, stop=stop)
    _end_if_stopped(stop)
    return ends


def _is_elsewhere(entry: Entry) -> bool:
    """Whether another process trains a run, which may be finished when its turn comes."""
    try:
        return is_taken(entry.config)
    except OSError:  # running it meets the same error, and reports it
        return False


def _failure(end: Ended, logs: dict[int, Path]) -> str:
    job = end.entry.job
    line = f"{job.name} ({end.outcomes[-1].why}): {job.command}"
    log = logs.get(end.entry.number)
    if log is None or not log.is_file():
        return line
    return f"{line}\n    {log}" + (f": {end.error}" if end.error else "")


def _differing(runs: Mapping[Path, Entry]) -> list[str]:
    """Settings that alone tell runs of one strategy and seed apart, as the files of a grid may."""
    alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for folder, entry in runs.items():
        settings = flat(entry.config)
        own = (f"{k}={v}" for k, v in settings.items() if k.startswith("model.adapter."))
        alike.setdefault((str(folder.parent), *own), []).append(settings)
    return [
        name
        for first, *others in alike.values()
        for name, value in first.items()
        if any(one.get(name) != value for one in others)
    ]


def _compare(runs: Mapping[Path, Entry], varied: Sequence[str]) -> None:
    """Print the comparison: by strategy with its arguments, and by everything else that varied."""
    from kora.compare.command import compare_command

    told_apart = ("experiment", "model.adapter")
    others = [
        key
        for key in varied
        if not (is_group(key) or key in told_apart or key.startswith("model.adapter."))
    ]
    if runs:
        try:
            by = dict.fromkeys(map(plain_name, [*others, *_differing(runs)]))
            compare_command(runs, by=",".join(by) or "strategy")
        except ValueError as error:  # the runs are finished all the same
            say(f"no comparison: {error}")
