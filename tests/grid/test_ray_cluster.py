"""kora grid --launcher ray: a cluster of two nodes, one of which dies."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import kora, results, started
from tests.support.cluster import TwoNodes, needs_ray
from tests.support.forks import Process
from tests.support.grids import LONG, gone, parent_of, runs_of_kora, write_grid

__all__ = ["gone"]

Capture = pytest.CaptureFixture[str]


def test_options_of_ray_alone_are_refused_without_it(here: Path, capfd: Capture) -> None:
    name = write_grid(here)
    outcome = kora(capfd, "grid", "--config", name, "--num_gpus", "1")
    assert outcome.code == 2
    assert "--num_gpus has no effect without --launcher ray" in outcome.err
    outcome = kora(capfd, "grid", "--config", name, "--launcher", "ray", "--jobs", "2")
    assert outcome.code == 2
    assert "--jobs is for this machine alone" in outcome.err
    assert kora(capfd, "grid", "--config", name, "--jobs", "0").code == 2
    assert kora(capfd, "grid", "--config", name, "--launcher", "ray", "--num_cpus", "-1").code == 2


def test_without_ray_the_remedy_is_told(
    here: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    outcome = kora(capfd, "grid", "--config", write_grid(here), "--launcher", "ray")
    assert outcome.code == 2
    assert "pip install 'kora-vit[ray]'" in outcome.err


@pytest.mark.slow
def test_without_a_cluster_the_way_to_start_one_is_told(here: Path) -> None:
    needs_ray()
    out = here / "out.txt"
    options = ("--launcher", "ray", "--ray_address", "127.0.0.1:1")
    with started("grid", "--config", write_grid(here), *options, log=out) as process:
        assert process.wait(timeout=120) == 1
    assert "There is no Ray cluster at 127.0.0.1:1" in out.read_text()
    assert "ray start --head" in out.read_text()


def wait_until(process: Process, log: Path, found: Any) -> Any:
    """What is found at last."""
    end = time.monotonic() + 300
    while time.monotonic() < end and process.poll() is None:
        it = found()
        if it:
            return it
        time.sleep(0.2)
    raise AssertionError(log.read_text())


def on_ray(name: str, cluster: TwoNodes) -> tuple[str, ...]:
    return ("grid", "--config", name, "--launcher", "ray", "--ray_address", cluster.address)


def node_of(text: str, rank: int) -> list[str]:
    """The nodes that a run was started on, by what the grid has printed."""
    return re.findall(rf"rank={rank}, seed 0 on .*? \((\w+)\)", text)


def run_of(here: Path, rank: int) -> int:
    """The process of a run, by the log that it writes."""
    (run,) = (
        pid for pid in runs_of_kora(here) if f"rank={rank}-" in os.readlink(f"/proc/{pid}/fd/1")
    )
    return run


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_runs_whose_worker_or_node_dies_go_on(here: Path, cluster: TwoNodes, gone: None) -> None:
    name = write_grid(here, vary={"model.adapter.rank": [1, 2]}, set=LONG)
    out = here / "out.txt"
    with started(*on_ray(name, cluster), log=out) as process:

        def both() -> bool:
            last = here.glob("runs/tiny/LoRA/seed0/version_*/checkpoints/last.ckpt")
            text = out.read_text()
            return len(list(last)) == 2 and bool(node_of(text, 1) and node_of(text, 2))

        wait_until(process, out, both)
        lost = cluster.other[:8]
        killed, moved = sorted((1, 2), key=lambda rank: node_of(out.read_text(), rank) == [lost])

        run = run_of(here, killed)
        worker = parent_of(parent_of(run))  # the run is a fork of what the worker keeps
        os.kill(worker, signal.SIGKILL)
        wait_until(process, out, lambda: run not in runs_of_kora(here))
        cluster.lose_the_other()
        (here / "hurry").touch()
        assert process.wait(timeout=400) == 0, out.read_text()
    text = out.read_text()
    first, second = node_of(text, moved)
    assert first == lost
    assert second != lost
    assert "2 runs done, 0 were finished before, 0 failed" in text
    folders = list(here.glob("runs/tiny/LoRA/seed0/version_*"))
    assert len(folders) == 2, "none was begun again"
    assert all(results(folder)["finished"] for folder in folders)
    for rank in (killed, moved):
        assert f"again: rank={rank}, seed 0 on " in text
        assert f"rank={rank}, seed 0: resumes from runs/tiny/LoRA/seed0/version_" in text
        (log,) = (here / "runs/grid_grid").glob(f"*rank={rank}-*.log")
        assert log.read_text().count("=== ") == 2
        assert "resuming (epoch " in log.read_text()
        if rank == killed:
            assert "stopped by SIGTERM after step" in log.read_text(), "it ended with its worker"
