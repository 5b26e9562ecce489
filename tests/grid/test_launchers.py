"""What every launcher does alike: runs end or fail on their own, and none is trained twice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kora.grid.dispatch import Ended, Launcher, Task
from kora.grid.file import Job
from kora.grid.launchers.batch import InQueue
from kora.grid.launchers.lightning_jobs import LightningJobs
from kora.grid.launchers.local import here as on_this_machine
from kora.grid.launchers.slurm import Slurm
from kora.grid.options import LAUNCHERS
from kora.grid.plan import NEW, Entry, resolved
from kora.runs.processes import Stop
from kora.runs.results import RESULTS_NAME, read_results, write_results
from kora.runs.search import find_finished_run
from tests.support.cli import tiny_config, write_config
from tests.support.lightning_ai import OWNER, STUDIO, TEAMSPACE, lightning_ai
from tests.support.slurm import slurm

__all__ = ["lightning_ai", "slurm"]

pytestmark = pytest.mark.slow

#: What has to run for each. Ray has the same claims in test_ray_cluster.py, as its cluster takes
#: half a minute to start.
NEEDS = {"local": None, "slurm": "slurm", "lightning": "lightning_ai"}


@contextmanager
def launcher(name: str, stop: Stop) -> Iterator[Launcher]:
    with ExitStack() as exits:
        if name == "local":
            yield exits.enter_context(on_this_machine(2, {}, stop))
        elif name == "slurm":
            queue: Any = Slurm(num_cpus=1, num_gpus=0, look_s=0.5)
            yield InQueue(queue, stop, at_once=None, leave=False)
        else:
            queue = LightningJobs(
                machine="A100", studio=STUDIO, teamspace=f"{OWNER}/{TEAMSPACE}", look_s=0.5
            )
            yield InQueue(queue, stop, at_once=None, leave=False)


def ended(where: Launcher, tasks: list[Task]) -> dict[str, Ended]:
    found: dict[str, Ended] = {}
    for task in tasks:
        where.start(task)
    while len(found) < len(tasks):
        for event in where.events():
            if isinstance(event, Ended):
                found[event.entry.job.name] = event
    return found


def test_each_launcher_has_a_contract() -> None:
    assert {*NEEDS, "ray"} == set(LAUNCHERS)


def set_clock_of_what_ran(folder: Path, days: int) -> None:
    """As if the machine that wrote the files had a clock that differs by so many days."""
    for path in folder.rglob("*"):
        then = path.stat().st_mtime + days * 24 * 3600
        os.utime(path, (then, then))
        if path.name == RESULTS_NAME:
            result = read_results(path.parent)
            created = datetime.fromisoformat(result.created) + timedelta(days=days)
            write_results(path.parent, replace(result, created=created.isoformat()))


@pytest.mark.parametrize(("name", "days"), [("lightning", -3), ("local", 3), ("slurm", 3)])
def test_a_run_ends_one_fails_alone_and_none_is_trained_twice_whatever_the_clocks(
    name: str, days: int, here: Path, request: pytest.FixtureRequest
) -> None:
    running = NEEDS[name] and request.getfixturevalue(NEEDS[name])
    write_config(here / "tiny.yaml", tiny_config())
    if name == "lightning":
        running.studio = [here / "tiny.yaml"]
    args = {
        "good": ("--config", "tiny.yaml", "--seed_everything=0"),
        "bad": ("--config", "tiny.yaml", "--model.adapter.rank=1000", "--seed_everything=0"),
    }
    tasks = []
    for number, (label, words) in enumerate(args.items(), 1):
        job = Job(label, words)
        config = resolved(Path("tiny.yaml"), job)
        entry = Entry(number, job, config, NEW, None)
        tasks.append(Task(entry, [(job, config)], Path(f"runs/grid_g/{number}.log")))
    stop = Stop()
    with launcher(name, stop) as where:
        found = ended(where, tasks)
    assert found["good"].outcomes[0].folder is not None, found["good"]
    assert found["bad"].outcomes[0].folder is None
    assert "1 to 128" in found["bad"].error, "the last line of its log"
    assert "Run folder" in Path("runs/grid_g/1.log").read_text()
    set_clock_of_what_ran(Path("runs"), days)
    with launcher(name, stop) as where:  # another grid, or the same again
        again = ended(where, tasks[:1])
    assert again["good"].outcomes[0].folder == find_finished_run(tasks[0].runs[0][1])
    assert len(list(Path("runs").glob("tiny/LoRA/seed0/version_*/results.json"))) == 1
    stop.ask(15)
    with launcher(name, stop) as where:
        stopped = ended(where, tasks[1:])
    assert stopped["bad"].outcomes[-1].why == "stopped"
