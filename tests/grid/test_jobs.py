"""kora grid --jobs: runs side by side, stopped and gone on with."""

from __future__ import annotations

import os
import re
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kora.grid.command import _plan
from kora.grid.file import read_grid
from kora.runs.search import find_finished_run
from kora.training.config_lock import alone_with
from tests.support.cli import kora, results, started, tiny_config, write_config
from tests.support.forks import Process
from tests.support.grids import LONG, gone, lines, runs_of_kora, write_grid

__all__ = ["gone"]

Capture = pytest.CaptureFixture[str]

pytestmark = pytest.mark.slow


def checkpoints(here: Path, number: int, process: Process) -> list[Path]:
    """The last checkpoints of so many runs, once they are there."""
    end = time.monotonic() + 240
    while time.monotonic() < end and process.poll() is None:
        found = sorted(here.glob("runs/tiny/*/seed*/version_*/checkpoints/last.ckpt"))
        if len(found) == number:
            return found
        time.sleep(0.1)
    raise AssertionError((here / "out.txt").read_text())


def test_runs_side_by_side_share_the_cores_and_print_into_logs(
    here: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch, gone: None
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads = [{"class_path": "tests.support.slowly.Threads"}]
    name = write_grid(
        here, vary={"model.adapter.rank": [1, 1000]}, set={"trainer.callbacks": threads}
    )
    outcome = kora(capfd, "grid", "--config", name, "--jobs", "2")
    assert outcome.code == 1
    logs = sorted((here / "runs/grid_grid").iterdir())
    assert [log.name for log in logs] == ["001_rank=1-seed_0.log", "002_rank=1000-seed_0.log"]
    assert "the output of the runs goes into runs/grid_grid" in outcome.out
    cores = len(os.sched_getaffinity(0))
    assert f"threads: {max(1, cores // 2)}" in logs[0].read_text()
    assert "Run folder" in logs[0].read_text()
    assert "Run folder" not in outcome.out
    assert "run 1 of 2: rank=1, seed 0 (time left: not known yet)" in outcome.out
    assert re.search(r"done in \d+ s: rank=1, seed 0 \(\d of 2\)", outcome.out)
    assert "failed, exit code 2: rank=1000, seed 0" in outcome.out
    assert "1 of 2 runs failed; their messages are in the logs" in outcome.err
    assert "runs/grid_grid/002_rank=1000-seed_0.log: kora: error: " in outcome.err
    assert "1 to 128" in outcome.err


def test_a_stop_reaches_all_runs_which_leave_checkpoints_and_go_on(
    here: Path, capfd: Capture, gone: None
) -> None:
    name = write_grid(here, vary={"model.adapter.rank": [1, 2]}, set=LONG)
    with started("grid", "--config", name, "--jobs", "2", log=here / "out.txt") as process:
        found = checkpoints(here, 2, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130, (here / "out.txt").read_text()
    assert not runs_of_kora(here)
    text = (here / "out.txt").read_text()
    assert "Repeat the command to resume the runs that are not finished." in text
    assert "Traceback" not in text
    for log in (here / "runs/grid_grid").iterdir():
        assert "stopped by SIGTERM after step" in log.read_text()
    out = kora(capfd, "grid", "--config", name, "--dry_run").out
    assert len(lines(out, "to resume")) == 2

    (here / "hurry").touch()
    outcome = kora(capfd, "grid", "--config", name, "--jobs", "2")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("resumes from") == 2
    for path in found:
        assert results(path.parents[1])["finished"]
    assert len(list(here.glob("runs/tiny/LoRA/seed0/version_*"))) == 2, "none was begun again"


def test_a_killed_grid_takes_its_runs_with_it(here: Path, capfd: Capture, gone: None) -> None:
    name = write_grid(here, set=LONG)
    with started("grid", "--config", name, "--jobs", "2", log=here / "out.txt") as process:
        (last,) = checkpoints(here, 1, process)
        process.kill()
        process.wait()
    end = time.monotonic() + 30
    while runs_of_kora(here) and time.monotonic() < end:
        time.sleep(0.1)
    assert not runs_of_kora(here)
    (line,) = lines(kora(capfd, "grid", "--config", name, "--dry_run").out, "to resume")
    assert line.endswith(str(last.relative_to(here)))


def test_a_killed_run_is_not_told_with_the_error_of_an_earlier_attempt(
    here: Path, gone: None
) -> None:
    name = write_grid(here, set=LONG)
    log = here / "runs/grid_grid/001_seed_0.log"
    log.parent.mkdir(parents=True)
    log.write_text("kora: error: of yesterday\n")
    with started("grid", "--config", name, "--jobs", "2", log=here / "out.txt") as process:
        checkpoints(here, 1, process)
        (run,) = (pid for pid in runs_of_kora(here) if pid != process.pid)
        os.kill(run, signal.SIGKILL)
        assert process.wait(timeout=120) == 1
    said = (here / "out.txt").read_text()
    assert "seed 0 (killed by SIGKILL)" in said
    assert str(log.relative_to(here)) in said
    assert "yesterday" not in said


def test_two_grids_at_once_train_each_run_once(here: Path, gone: None) -> None:
    name = write_grid(here, vary={"model.adapter.rank": [1, 2]})
    with (
        started("grid", "--config", name, log=here / "one.txt") as one,
        started("grid", "--config", name, log=here / "two.txt") as two,
    ):
        codes = one.wait(timeout=240), two.wait(timeout=240)
    texts = [(here / f"{n}.txt").read_text() for n in ("one", "two")]
    assert codes == (0, 0), texts
    assert len(list(here.glob("runs/tiny/LoRA/seed0/version_*"))) == 2
    assert sum(text.count("Run folder") for text in texts) == 2


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_another_process_sees_to_is_waited_for_at_the_end(
    here: Path, gone: None, jobs: int
) -> None:
    """So two grids of one file share its runs, whichever began."""
    ranks = [1, 2, 3][: jobs + 1]
    name = write_grid(here, vary={"model.adapter.rank": ranks})
    path = here / name
    first, *others = [one.config for one in _plan(path, read_grid(path, []), [])]
    log = here / "out.txt"
    with ExitStack() as held, ExitStack() as grid:
        held.enter_context(alone_with(first, say=print))
        process = grid.enter_context(
            started("grid", "--config", name, "--jobs", str(jobs), log=log)
        )
        end = time.monotonic() + 240
        while "waiting for another process" not in log.read_text() and time.monotonic() < end:
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        assert any(map(find_finished_run, others)), log.read_text()
        held.close()
        assert process.wait(timeout=240) == 0, log.read_text()
    order = re.findall(r"run \d of \d: (rank=\d), seed 0", log.read_text())
    assert order == [f"rank={rank}" for rank in (*ranks[1:], 1)]
    assert all(map(find_finished_run, (first, *others)))


def source_grid(here: Path, **more: Any) -> str:
    """Two jobs that differ in the head alone, and so need the same source stage."""
    write_config(here / "source.yaml", tiny_config(experiment="source"))
    write_config(here / "tiny.yaml", tiny_config(experiment="target", source="source.yaml"))
    return write_grid(here, vary={"model.head_lr": [0.1, 0.2]}, **more)


def test_jobs_that_need_one_source_stage_train_it_once_also_where_it_is_stopped(
    here: Path, capfd: Capture, gone: None
) -> None:
    name = source_grid(here)
    source = tiny_config(experiment="source", save={"every_steps": 1})
    source["trainer"] |= {"max_steps": 30, "max_epochs": -1}
    source["trainer"]["callbacks"] = LONG["trainer.callbacks"]
    write_config(here / "source.yaml", source)
    last = here / "runs/source/LoRA/seed0/version_0/checkpoints/last.ckpt"
    with started("grid", "--config", name, "--jobs", "2", log=here / "out.txt") as process:
        end = time.monotonic() + 240
        while not last.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        process.terminate()
        assert process.wait(timeout=60) == 143, (here / "out.txt").read_text()
    assert not runs_of_kora(here)
    assert last.exists()
    (here / "hurry").touch()
    outcome = kora(capfd, "grid", "--config", name, "--jobs", "2")
    assert outcome.code == 0, outcome.err
    logs = "".join(log.read_text() for log in (here / "runs/grid_grid").iterdir())
    assert "waiting for another process" in logs
    assert "stopped during the source stage" in logs
    assert logs.count("fits and is used again") == 1
    assert f"resumed from {last.relative_to(here)}" in logs
    assert [p.name for p in (here / "runs/source/LoRA/seed0").iterdir()] == ["version_0"]
