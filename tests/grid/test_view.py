"""What a grid shows, and how it expects the time that is left."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from kora.grid.file import Job
from kora.grid.plan import FINISHED, NEW, RESUME, Entry
from kora.grid.run import Outcome, log_path, share_of_threads
from kora.grid.view import Estimate, GridView
from tests.support.run_folders import write_run
from tests.support.stored_config import CONFIG


def entry(number: int, kind: str, state: str = NEW, folder: Path | None = None) -> Entry:
    return Entry(number, Job(f"{kind}, seed {number}", (), kind), {}, state, folder)


class Clock:
    """Shows what it is set to."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_a_run_takes_as_long_as_those_of_its_kind() -> None:
    clock = Clock()
    runs = [entry(1, "lora"), entry(2, "lora"), entry(3, "kora"), entry(4, "kora")]
    estimate = Estimate(runs, clock)
    assert estimate.seconds_left(1) is None
    for place, took in ((0, 10), (2, 30)):
        estimate.started(runs[place])
        clock.seconds += took
        estimate.ended(runs[place], finished=True)
    assert estimate.seconds_left(1) == 10 + 30
    assert estimate.seconds_left(2) == 30, "no sooner than the longest ends"
    estimate.started(runs[3])
    clock.seconds += 25
    assert estimate.seconds_left(1) == 10 + 5
    clock.seconds += 100
    assert estimate.seconds_left(1) == 10, "late, and not less than nothing"


def test_what_failed_or_went_on_says_nothing_of_how_long_runs_take() -> None:
    clock = Clock()
    runs = [entry(1, "lora"), entry(2, "lora", RESUME), entry(3, "lora")]
    estimate = Estimate(runs, clock)
    for run, finished in ((runs[0], False), (runs[1], True)):
        estimate.started(run)
        clock.seconds += 10
        estimate.ended(run, finished=finished)
    assert estimate.seconds_left(1) is None


def test_runs_that_were_finished_before_say_how_long_they_took(tmp_path: Path) -> None:
    folder = write_run({**CONFIG, "runs_dir": str(tmp_path)}, seconds={"fit": 40.0, "test": 2.0})
    runs = [entry(1, "lora", FINISHED, folder), entry(2, "kora"), entry(3, "kora")]
    assert Estimate(runs).seconds_left(2) == 42
    (folder / "results.json").write_text("{")  # damaged since
    assert Estimate(runs).seconds_left(2) is None


def test_without_a_terminal_there_are_plain_lines() -> None:
    out = io.StringIO()
    runs = [entry(1, "[lora]"), entry(2, "kora")]
    console = Console(file=out, width=40)
    with GridView(runs, at_once=2, live=True, console=console) as view:
        view.started(runs[0])
        view.started(runs[1], "node2")
        view.started(runs[1], "node3")
        view.ended(runs[0], Outcome(Path("runs/x"), "", 12.0))
        view.ended(runs[1], Outcome(None, "exit code 2", 1.0))
    lines = out.getvalue().splitlines()
    assert lines[0] == "kora: run 1 of 2: [lora], seed 1 (time left: not known yet)"
    assert lines[1] == "kora: run 2 of 2: kora, seed 2 on node2 (time left: not known yet)"
    assert lines[2] == "kora: again: kora, seed 2 on node3 (time left: not known yet)"
    assert lines[3] == "kora: done in 12 s: [lora], seed 1 (1 of 2)"
    assert lines[4] == "kora: failed, exit code 2: kora, seed 2"
    assert len(lines) == 5
    assert "\x1b" not in out.getvalue()


def test_on_a_terminal_the_view_names_what_runs_and_the_time_left() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True, _environ={})
    runs = [entry(1, "lora"), entry(2, "[kora]"), entry(3, "kora")]
    with GridView(runs, at_once=2, live=True, console=console) as view:
        view.started(runs[0])
        view.started(runs[1], "node2")
        view.ended(runs[0], Outcome(None, "exit code 1", 1.0))
        with console.capture() as capture:
            console.print(view.picture())
    shown = capture.get()
    assert "1 of 3 runs, 1 failed" in shown
    assert "time left: not known yet" in shown
    assert "[kora], seed 2  node2" in shown
    assert "lora, seed 1" not in shown


@pytest.mark.parametrize(
    ("jobs", "given", "threads"), [(2, "", 2), (3, "", 1), (9, "", 1), (2, "1", 1), (2, "x", 2)]
)
def test_runs_side_by_side_share_the_cores(
    jobs: int, given: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)
    env = share_of_threads(jobs, {"OMP_NUM_THREADS": given, "A": "b"})
    assert env == {"OMP_NUM_THREADS": str(threads), "A": "b"}


def test_a_log_has_the_name_of_its_run_whatever_is_in_it() -> None:
    job = Job("configs/a b.yaml, rank=[1, 2], seed 3", ())
    path = log_path(Path("configs/grids/mine.yaml"), job, 7, "runs")
    assert path == Path("runs/grid_mine/007_configs_a_b.yaml-rank=_1-2_-seed_3.log")
