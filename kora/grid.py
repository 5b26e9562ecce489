"""`kora grid`: the runs of a grid file one after another, each once, and then their comparison."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from kora.grid_file import Job, read_grid

__all__ = ["grid"]


def grid(args: Sequence[str]) -> None:
    """Run what of a grid is not finished, and compare.

    Raises:
        ValueError: the grid or one of its runs is not accepted; nothing has run then.
        RuntimeError: some runs failed; the others have run.
    """
    parser = argparse.ArgumentParser(
        prog="kora grid",
        description="Run every combination of a grid file with every seed, one after another. "
        "Finished runs are skipped, so the same command goes on after a stop.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", "-c", required=True, metavar="FILE", help="the grid")
    parser.add_argument("--dry_run", action="store_true", help="list the runs and start none")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="overrides",
        help="options of kora fit for all runs; they win over `set` of the file",
    )  # fmt: skip
    own = parser.parse_args(args)
    path = Path(own.config)
    environment = dict(os.environ)  # parsing leaves its seed behind, which no run may inherit
    planned = read_grid(path, own.overrides)
    jobs = planned.jobs()
    configs = [_resolved(path, job) for job in jobs]
    _refuse_equal(path, jobs, configs)
    found = [_finished(config) for config in configs]
    done = sum(folder is not None for folder in found)
    _say(f"{path}: {len(jobs)} runs, {done} of them finished.")
    if own.dry_run:
        for job, folder in zip(jobs, found, strict=True):
            what = f"to run    {job.name}: {job.command}"
            print(what if folder is None else f"finished  {job.name}: {folder}")
        return
    failed: list[str] = []
    seconds: list[float] = []
    waiting = [place for place, folder in enumerate(found) if folder is None]
    for number, place in enumerate(waiting):
        rest = len(waiting) - number
        left = _span(rest * sum(seconds) / len(seconds)) if seconds else "not known yet"
        _say(f"run {number + 1} of {len(waiting)}: {jobs[place].name} (time left: {left})")
        started = time.monotonic()
        code = _run(jobs[place], environment)
        found[place] = None if code else _finished(configs[place])
        if found[place] is None:
            why = f"exit code {code}" if code else "ended without a result"
            failed.append(f"{jobs[place].name} ({why}): {jobs[place].command}")
            _say(f"failed, {why}: {jobs[place].name}")
        else:
            seconds.append(time.monotonic() - started)
    _say(f"{len(seconds)} runs done, {done} were finished before, {len(failed)} failed.")
    _compare([folder for folder in found if folder is not None], tuple(planned.vary))
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(jobs)} runs failed; their messages stand above. The same "
            "command tries them again.\n" + "\n".join(f"  - {line}" for line in failed)
        )


def _resolved(path: Path, job: Job) -> dict[str, Any]:
    from kora.lightning_cli import parse  # imports torch

    try:
        return parse(["fit", *job.args]).resolved()
    except SystemExit as stop:
        raise ValueError(
            f"{path}: the options of '{job.name}' are not accepted; the reason stands above. "
            f"Nothing was started. The run is: {job.command}"
        ) from stop


def _refuse_equal(path: Path, jobs: list[Job], configs: list[dict[str, Any]]) -> None:
    """Two runs of one config would be one run that counts twice."""
    seen: dict[str, str] = {}
    for job, config in zip(jobs, configs, strict=True):
        twin = seen.setdefault(json.dumps(config, sort_keys=True), job.name)
        if twin != job.name:
            raise ValueError(
                f"{path}: '{twin}' and '{job.name}' are the same run. Leave out values under "
                "'vary' that change nothing."
            )


def _finished(config: dict[str, Any]) -> Path | None:
    from kora.transfer import find_finished_run

    return find_finished_run(Path(config["runs_dir"]) / config["experiment"], config)


def _run(job: Job, environment: dict[str, str]) -> int:
    """Run it in a process of its own; its exit code. A stop of the grid stops the run too."""

    def terminate(*_: object) -> NoReturn:
        sys.exit(128 + signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, terminate)
    process = subprocess.Popen(
        [sys.executable, "-m", "kora", "fit", *job.args],
        stdin=subprocess.DEVNULL,
        env=environment,
    )
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()  # Ctrl-C reached it as well; it is closing its files
        _say("stopped. The same command goes on with the runs that are not finished.")
        sys.exit(128 + signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, previous)
        if process.poll() is None:
            process.terminate()


def _compare(folders: list[Path], varied: Sequence[str]) -> None:
    """Print the comparison, which tells runs apart by experiment, strategy and its arguments."""
    from kora.compare import compare_command

    told_apart = ("config", "experiment", "model.adapter")
    others = [k for k in varied if k not in told_apart and not k.startswith("model.adapter.")]
    if others:
        _say(
            f"no comparison: it goes by strategy, and {', '.join(others)} varies within one. To "
            "compare, put each value into a file with an experiment name of its own, and vary "
            "config; then: kora compare runs --by experiment"
        )
    elif folders:
        try:
            compare_command(folders)
        except ValueError as error:  # the runs are there all the same
            _say(f"no comparison: {error}")


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def _say(text: str) -> None:
    print(f"kora: {text}", flush=True)
