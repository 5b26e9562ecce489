"""kora grid --launcher slurm: an array of jobs that outlives the command."""

from __future__ import annotations

import json
import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kora.grid.dispatch import Ended, Task
from kora.grid.file import Job
from kora.grid.launchers.batch import QueueError, Refused
from kora.grid.launchers.job import ending_of
from kora.grid.launchers.slurm import Slurm, script
from kora.grid.plan import NEW, Entry
from tests.support.cli import kora, started
from tests.support.forks import Process
from tests.support.grids import LONG, gone, runs_of_kora, write_grid
from tests.support.slurm import slurm

__all__ = ["gone", "slurm"]

Capture = pytest.CaptureFixture[str]


def queue(*options: str) -> Slurm:
    return Slurm(num_cpus=2, num_gpus=1, options=options, look_s=0.1)


def until_saved(here: Path, process: Process) -> None:
    """Wait for a checkpoint of a run."""
    end = time.monotonic() + 120
    while not list(here.glob("runs/tiny/*/seed*/version_*/checkpoints/last.ckpt")):
        assert process.poll() is None, (here / "out.txt").read_text()
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
def test_the_array_is_left_found_again_and_cancelled_if_that_is_asked_for(
    here: Path, capfd: Capture, slurm: Path, gone: None
) -> None:
    name = write_grid(here, set=LONG)
    options = ("grid", "--config", name, "--launcher", "slurm", "--sbatch", "partition=main")
    log = here / "out.txt"
    with started(*options, log=log) as process:
        until_saved(here, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130, log.read_text()
    assert "1 jobs submitted to SLURM: kora-grid-" in log.read_text()
    assert "go on in SLURM; to stop them: scancel --me --name=kora-grid-" in log.read_text()
    assert runs_of_kora(here), "the run goes on"
    (array,) = slurm.iterdir()
    asked = json.loads((array / "options.json").read_text())
    assert asked["array"] == "0-0"
    assert asked["partition"] == "main"

    with started(*options, "--on_stop", "stop", log=log) as process:
        end = time.monotonic() + 60
        while "is already SLURM job kora-grid-" not in log.read_text():
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130, log.read_text()
    while runs_of_kora(here) and time.monotonic() < end:
        time.sleep(0.1)
    assert "stopped by SIGTERM after step" in next(here.glob("runs/grid_grid/*.log")).read_text()
    assert "to resume" in kora(capfd, "grid", "--config", name, "--dry_run").out


def task(here: Path) -> Task:
    job = Job("one", ("--help",))
    config: dict[str, Any] = {"trainer": {}, "model": {}}
    entry = Entry(1, job, config, NEW, None)
    return Task(entry, [(job, config)], here / "grid_x/001_one.log")


def test_a_refusal_is_told_in_sbatchs_words_and_nothing_is_left(here: Path, slurm: Path) -> None:
    (slurm / "refuse").write_text("Batch job submission failed: Invalid partition name.")
    (refused,) = queue("partition=gpus").submit([task(here)])
    assert isinstance(refused, Refused)
    assert refused.why.startswith("sbatch refused ")
    assert refused.why.endswith("Invalid partition name")
    assert not list(here.glob("grid_x/slurm/*.json"))


def test_of_an_array_of_an_earlier_call_only_the_jobs_that_are_meant_are_cancelled(
    here: Path, slurm: Path, gone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleeps(job: str, listed: Path, count: int, options: object) -> str:
        lines = f"job-name={job}", f"array=0-{count - 1}", "output=o_%a", "cpus-per-task=1"
        return "".join(f"#SBATCH --{line}\n" for line in lines) + "sleep 60\n"

    monkeypatch.setattr("kora.grid.launchers.slurm.script", sleeps)
    names = [str(name) for name in queue().submit([task(here)] * 3)]
    later = queue()
    assert set(later.look()) == set(names)
    assert later.how_to_stop([names[0], names[2]]) == "scancel 7_0 7_2"
    later.stop([names[0], names[2]])
    while len(left := later.look()) > 1:
        time.sleep(0.05)
    assert list(left) == [names[1]]
    assert later.how_to_stop(names) == f"scancel --me --name={names[1].removesuffix('_1')}"
    later.stop(names)


def test_a_job_that_leaves_without_a_word_is_told_as_killed(
    here: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = queue()
    assert waiting.ended(task(here), "kora-x-12345678_0") is None, "a shared folder takes a while"
    monkeypatch.setattr("kora.grid.launchers.slurm._SHARED_S", 0.0)
    told = waiting.ended(task(here), "kora-x-12345678_0")
    assert told is not None
    (why,) = (one.why for one in told.outcomes)
    assert why.startswith("killed, or never started: its job kora-x-12345678_0 left the queue")
    assert "share that folder" in why
    path = ending_of(here / "grid_x/slurm/kora-x-12345678.json", 0)
    path.parent.mkdir(parents=True)
    path.write_text('{"outcomes": [{"folder": "a", "why": "", "seconds": 2.0}], "error": ""}')
    ended = queue().ended(task(here), "kora-x-12345678_0")
    assert isinstance(ended, Ended)
    assert ended.outcomes[-1].folder == Path("a")


@pytest.mark.parametrize("damage", ["", "[{", "\xff"])
def test_what_jobs_left_is_told_as_damaged_with_the_file(
    damage: str, here: Path, slurm: Path
) -> None:
    mine, jobs = task(here), queue()
    (job,) = jobs.submit([mine])
    assert isinstance(job, str)
    jobs.stop([job])
    while jobs.look():  # it would write how it ended, too
        time.sleep(0.05)
    listed = here / f"grid_x/slurm/{job.removesuffix('_0')}.json"
    ending = ending_of(listed, 0)
    for path, look in (
        (ending, lambda: jobs.ended(mine, job)),
        (listed, lambda: jobs.known([mine])),
    ):
        path.write_bytes(damage.encode("latin-1"))
        with pytest.raises(RuntimeError, match=rf"^{path} is damaged: .* Remove it, and repeat"):
            look()


def test_a_grid_of_any_name_gives_jobs_whose_names_are_one_word(here: Path, slurm: Path) -> None:
    odd = replace(task(here), log=here / "grid_a b,c|d/log")
    (job,) = queue().submit([odd])
    assert re.fullmatch(r"kora-a-b-c-d-[0-9a-f]{8}_0", str(job))


def test_a_controller_that_is_away_is_no_end_of_the_jobs(slurm: Path) -> None:
    assert queue().look() == {}  # the job of someone else is not ours
    (slurm / "silent").touch()
    with pytest.raises(QueueError, match="Unable to contact slurm controller"):
        queue().look()


def test_the_script_asks_for_what_was_asked(tmp_path: Path) -> None:
    asked = ["cpus-per-task=2", "gpus=1", "time=4:00:00", "exclusive"]
    text = script("kora-x", tmp_path / "a b.json", 3, asked)
    for option in ("array=0-2", "job-name=kora-x", "requeue", "signal=USR1@120", *asked):
        assert f"\n#SBATCH --{option}\n" in text
    assert f"'{tmp_path}/a b.json'" in text
    text = script("kora-x", tmp_path / "50 %/x.json", 1, asked)
    assert f'\n#SBATCH --output="{tmp_path}/50 %%/kora-x_%a.out"\n' in text


def test_without_slurm_or_with_an_option_of_another_form_it_is_refused(
    here: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    options = ("grid", "--config", write_grid(here), "--launcher", "slurm")
    with monkeypatch.context() as alone:
        alone.setenv("PATH", "/nowhere")
        outcome = kora(capfd, *options)
    assert outcome.code == 2
    assert "there is no sbatch here" in outcome.err
    request.getfixturevalue("slurm")
    outcome = kora(capfd, *options, "--sbatch", "--partition=gpu")
    assert outcome.code == 2
    outcome = kora(capfd, *options, "--sbatch", "partition gpu")
    assert outcome.code == 2
    assert "expected KEY=VALUE" in outcome.err
    outcome = kora(capfd, *options[:3], "--on_stop", "leave")
    assert outcome.code == 2
    assert "--on_stop has no effect without --launcher slurm" in outcome.err
