"""kora grid --launcher lightning: jobs of Lightning AI, whose run folders come back."""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kora.grid.dispatch import Ended, Task
from kora.grid.file import Job
from kora.grid.launchers import lightning_jobs
from kora.grid.launchers.batch import InQueue, QueueError, Refused
from kora.grid.launchers.lightning_jobs import LightningJobs
from kora.grid.plan import NEW, Entry
from kora.runs.processes import Stop
from kora.runs.search import find_finished_run
from tests.support.cli import kora, results
from tests.support.grids import write_grid
from tests.support.lightning_ai import OWNER, STUDIO, TEAMSPACE, LightningAI, lightning_ai

__all__ = ["lightning_ai"]

Capture = pytest.CaptureFixture[str]
OPTIONS = ("--launcher", "lightning", "--studio", STUDIO, "--teamspace", f"{OWNER}/{TEAMSPACE}")


def queue(**options: Any) -> LightningJobs:
    given = {"machine": "A100", "studio": STUDIO, "teamspace": f"{OWNER}/{TEAMSPACE}", **options}
    return LightningJobs(**given, look_s=0.1)


def task(here: Path, *args: str, name: str = "one") -> Task:
    """A task whose job runs `kora fit ARGS`, which is replaced by `true` in the tests that wait."""
    config = {
        "trainer": {}, "model": {}, "seed_everything": 0, "runs_dir": "runs", "experiment": "x",
        "data": {"name": name},
    }  # fmt: skip
    job = Job(name, args)
    return Task(Entry(1, job, config, NEW, None), [(job, config)], here / "runs/grid_My/001.log")


def instead(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """Jobs run this command, in no time."""
    monkeypatch.setattr(LightningJobs, "_command", lambda self, task: command)


def until_ended(launcher: InQueue) -> tuple[list[Ended], list[str]]:
    ended: list[Ended] = []
    said: list[str] = []
    while not ended:
        for event in launcher.events():
            if isinstance(event, Ended):
                ended.append(event)
            else:
                said.append(str(event))
    return ended, said


@pytest.mark.slow
def test_jobs_train_and_their_run_folders_come_back(
    here: Path, capfd: Capture, lightning_ai: LightningAI
) -> None:
    name = write_grid(here, vary={"model.adapter.rank": [1, 1000]})
    lightning_ai.studio = [here / "tiny.yaml"]
    options = ("grid", "--config", name, *OPTIONS, "--machine", "l4")
    shown = kora(capfd, *options, "--dry_run").out
    assert shown.count("Job.run(name='kora-grid-") == 2
    assert shown.count("machine='L4'") == 2
    assert "cd . && kora fit --config tiny.yaml" in shown
    assert "--resume auto" in shown
    assert not lightning_ai.jobs

    outcome = kora(capfd, *options)
    assert outcome.code == 1
    assert "2 jobs submitted to Lightning AI: kora-grid-" in outcome.out
    assert "cost so far: " in outcome.out
    (folder,) = here.glob("runs/tiny/LoRA/seed0/version_*")
    assert results(folder)["finished"]
    assert kora(capfd, *options, "--dry_run").out.count("finished   rank=1, seed 0") == 1
    assert "Run folder" in (here / "runs/grid_grid/001_rank=1-seed_0.log").read_text()
    assert "failed, job kora-grid-" in outcome.out
    assert "rank=1000" in outcome.err
    assert "1 to 128" in outcome.err, "the last line of its log"
    bodies = [json.loads(b) for m, p, b in lightning_ai.asked if m == "POST" and p.endswith("jobs")]
    assert {body["spec"]["instanceName"] for body in bodies} == {"lit-l4-1"}
    assert not any(body["spec"]["env"] for body in bodies)
    assert not any("a-secret-of-lightning" in body for _, _, body in lightning_ai.asked)


def test_a_run_folder_is_fetched_from_the_drive_to_the_next_free_version(
    here: Path, lightning_ai: LightningAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = task(here)
    wrote = "mkdir -p lab/runs/x/LoRA/seed0/version_0 && echo hello"
    instead(monkeypatch, wrote)
    there = Path("runs/x/LoRA/seed0/version_0")
    there.mkdir(parents=True)
    (there / "mine").touch()

    def found(config: dict[str, Any], *_: Any) -> Path | None:  # what a result looks like is
        at = Path(config["runs_dir"]) / "x/LoRA/seed0/version_0"  # not the claim here
        return at if at.is_dir() and not (at / "mine").exists() else None

    monkeypatch.setattr(lightning_jobs, "find_finished_run", found)
    launcher = InQueue(queue(folder="lab"), Stop(), at_once=None, leave=True)
    launcher.start(one)
    (ended,), said = until_ended(launcher)
    assert ended.outcomes[0].folder == Path("runs/x/LoRA/seed0/version_1")
    assert ended.outcomes[0].seconds == 8
    assert (there / "mine").exists()
    assert not list(Path("runs").glob(".fetched-*"))
    assert one.log is not None
    assert "hello" in one.log.read_text()
    assert any("cost so far: 0.50 US dollars; the rest about 0.00" in text for text in said)


def test_a_job_is_found_again_by_its_name_and_a_failed_one_is_tried_anew(
    here: Path, lightning_ai: LightningAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = task(here)
    instead(monkeypatch, "echo 'bash: kora: command not found'; false")
    launcher = InQueue(queue(), Stop(), at_once=None, leave=True)
    launcher.start(one)
    (ended,), _ = until_ended(launcher)
    assert ended.error == "bash: kora: command not found"
    (first,) = (job["name"] for job in lightning_ai.jobs.values())
    assert ended.outcomes[0].why == f"job {first} failed"
    assert first.startswith("kora-my-")
    assert first.endswith("-1")

    instead(monkeypatch, "sleep 60")
    stop = Stop()
    launcher = InQueue(queue(), stop, at_once=None, leave=True)
    launcher.start(one)
    launcher.events()
    (second,) = (job["name"] for job in lightning_ai.jobs.values() if job["state"] == "running")
    assert second == f"{first[:-1]}2"
    stop.ask(signal.SIGINT)
    told, over = launcher.events()
    assert f"lightning job stop {second}" in str(told)
    assert isinstance(over, Ended)
    assert over.outcomes[0].why == "stopped"

    stop = Stop()
    launcher = InQueue(queue(), stop, at_once=None, leave=False)
    launcher.start(one)
    assert f"is already Lightning AI job {second}" in str(launcher.events()[0])
    assert len(lightning_ai.jobs) == 2, "none is submitted twice"
    stop.ask(signal.SIGINT)
    launcher.events()
    assert [job["state"] for job in lightning_ai.jobs.values()] == ["failed", "stopped"]


def test_a_name_that_was_taken_meanwhile_becomes_another(
    here: Path, lightning_ai: LightningAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    instead(monkeypatch, "true")
    jobs = queue()
    monkeypatch.setattr(LightningJobs, "_jobs", lambda self: {})  # as before the other one came
    (name,) = jobs.submit([task(here)])
    with pytest.warns(UserWarning, match="already taken"):
        (other,) = jobs.submit([task(here)])
    assert other == f"{name}-x"


def test_what_costs_too_much_is_stopped(
    here: Path, lightning_ai: LightningAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    instead(monkeypatch, "sleep 60")
    lightning_ai.cost = 3.0
    launcher = InQueue(queue(max_cost=5), Stop(), at_once=None, leave=True)
    for name in ("one", "two"):
        launcher.start(task(here, name=name))
    ended, _ = until_ended(launcher)
    assert {one.outcomes[0].why for one in ended} == {
        "stopped: the jobs have cost 6.00 US dollars, and --max_cost is 5"
    }
    assert {job["state"] for job in lightning_ai.jobs.values()} == {"stopped"}
    launcher.start(task(here, name="three"))
    ended, _ = until_ended(launcher)
    assert not ended[0].outcomes[0].ran
    assert len(lightning_ai.jobs) == 2, "and no other one is submitted"


def test_where_the_server_fails_about_one_job_the_others_are_stopped_and_it_is_asked_again(
    here: Path, lightning_ai: LightningAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    instead(monkeypatch, "sleep 60")
    jobs = queue()
    names = [str(name) for k in ("one", "two") for name in jobs.submit([task(here, name=k)])]
    lightning_ai.deaf = {"j0"}
    for asks in (jobs.look, partial(jobs.stop, names)):
        with pytest.raises(QueueError, match="Lightning AI does not answer"):
            asks()
    assert [job["state"] for job in lightning_ai.jobs.values()] == ["running", "stopped"]
    lightning_ai.deaf.clear()
    jobs.stop(names)
    assert {job["state"] for job in lightning_ai.jobs.values()} == {"stopped"}


def test_a_busy_server_a_quota_a_slow_start_and_a_deleted_job(
    here: Path, lightning_ai: LightningAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    instead(monkeypatch, "true")
    jobs = queue()
    lightning_ai.failures, lightning_ai.slow = [429, 500], 2  # the SDK asks again
    (name,) = jobs.submit([task(here)])
    assert isinstance(name, str)
    assert not jobs.look()[name].runs
    lightning_ai.silent = True
    with pytest.raises(QueueError, match="Lightning AI does not answer"):
        jobs.look()
    lightning_ai.silent = False
    lightning_ai.failures = [400]
    (refused,) = jobs.submit([task(here, name="two")])
    assert isinstance(refused, Refused)
    assert "Lightning AI refused the job" in refused.why
    lightning_ai.jobs.clear()
    assert name not in jobs.look()
    ended = jobs.ended(task(here), name)
    assert "is no longer in the teamspace; was it deleted?" in ended.outcomes[0].why


def test_tasks_outlast_a_silent_server_and_none_is_submitted_twice(
    here: Path, lightning_ai: LightningAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    instead(monkeypatch, "sleep 60")
    stop = Stop()
    launcher = InQueue(queue(), stop, at_once=None, leave=False)
    for name in ("one", "two"):
        launcher.start(task(here, name=name))
    submit = LightningJobs.submit

    def cut_off(self: LightningJobs, tasks: Any) -> Any:
        submit(self, tasks)
        monkeypatch.setattr(LightningJobs, "submit", submit)
        raise QueueError("Lightning AI does not answer: no.")

    monkeypatch.setattr(LightningJobs, "submit", cut_off)
    said = [str(event) for event in launcher.events()]
    assert "does not answer: no. Looking again" in said[0]
    said = [str(event) for event in launcher.events()]
    assert sum("is already Lightning AI job" in text for text in said) == 2
    assert len(lightning_ai.jobs) == 2
    stop.ask(signal.SIGTERM)
    lightning_ai.silent = True
    told, *over = launcher.events()
    assert "does not answer" in str(told)
    assert "2 jobs go on in Lightning AI; to stop them: lightning job stop" in str(told)
    assert len(over) == 2


def test_a_completed_job_without_its_run_folder_is_no_success(
    here: Path, lightning_ai: LightningAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    instead(monkeypatch, "true")
    launcher = InQueue(queue(), Stop(), at_once=None, leave=True)
    launcher.start(task(here))
    while not any(job["state"] == "completed" for job in lightning_ai.jobs.values()):
        assert not [event for event in launcher.events() if isinstance(event, Ended)]
    assert not [event for event in launcher.events() if isinstance(event, Ended)], "it may come"
    monkeypatch.setattr(lightning_jobs, "_ARRIVES_S", 0.0)
    (ended,), _ = until_ended(launcher)
    assert "is completed, but runs/x of one is not among what it wrote" in ended.outcomes[0].why
    assert find_finished_run(task(here).runs[0][1]) is None


def test_a_command_with_a_secret_in_it_is_refused(
    here: Path, lightning_ai: LightningAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "0123456789abcdef")
    with pytest.raises(ValueError, match="has the value of MY_API_KEY in it"):
        queue().submit([task(here, "--wandb.project", "0123456789abcdef")])
    assert not lightning_ai.jobs


def test_what_is_missing_is_told_before_anything_starts(
    here: Path, capfd: Capture, lightning_ai: LightningAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("grid", "--config", write_grid(here), *OPTIONS)

    def refusal(*more: str) -> str:
        outcome = kora(capfd, *command, *more)
        assert outcome.code == 2
        return outcome.err

    assert "Near it: A100" in refusal("--machine", "A10000")
    assert "there is no Studio attic in teamspace me/space" in refusal("--studio", "attic")
    assert "there is no Studio lab in teamspace me/no" in refusal("--teamspace", "me/no")
    assert "--num_gpus has no effect without" in refusal("--num_gpus", "1")
    lightning_ai.refuses = True
    assert "does not accept the credentials. Check" in refusal()
    for name in ("LIGHTNING_API_KEY", "LIGHTNING_USER_ID"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(
        "lightning_sdk.lightning_cloud.login.Auth.secrets_file", here / "credentials.json"
    )
    assert "there are no credentials of Lightning AI here" in refusal()
    monkeypatch.setitem(__import__("sys").modules, "lightning_sdk", None)
    assert "pip install 'kora-vit[lightning-sdk]'" in refusal()
