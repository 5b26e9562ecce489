"""A run that was stopped goes on as if it had not been."""

from __future__ import annotations

import csv
import fcntl
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kora.runs.search import LAST_CHECKPOINT
from kora.training.resume import resume_arguments
from tests.support.armed import TRUST, run, run_fresh
from tests.support.cli import Outcome, kora, results, write_config
from tests.support.resuming import SEED0, checkpoint, config

pytestmark = [pytest.mark.runs, pytest.mark.fits]

Capture = pytest.CaptureFixture[str]


def logged(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, without the columns that are empty in them."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def assert_same_run(one: Path, other: Path) -> None:
    """Every logged value, both checkpoints' weights, the optimiser's state and the results."""
    assert logged(one) == logged(other)
    for name in ("last", "best"):
        mine, theirs = checkpoint(one, name), checkpoint(other, name)
        assert mine["global_step"] == theirs["global_step"]
        assert mine["epoch"] == theirs["epoch"]
        assert mine["lr_schedulers"] == theirs["lr_schedulers"]
        for key, value in mine["state_dict"].items():
            assert torch.equal(value, theirs["state_dict"][key]), key
        moments, others = (c["optimizer_states"][0]["state"] for c in (mine, theirs))
        for number, state in moments.items():
            for key, value in state.items():
                assert torch.equal(value, others[number][key]), (number, key)
    assert results(one)["metrics"] == results(other)["metrics"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of `config()`."""
    folder = tmp_path_factory.mktemp("whole")
    write_config(folder / "tiny.yaml", config())
    code, out = run(folder, "fit", "--config", "tiny.yaml")
    assert code == 0, out
    return folder / SEED0 / "version_0"


@pytest.fixture
def tiny(here: Path) -> Path:
    """An empty working directory with the config of `whole`."""
    write_config(here / "tiny.yaml", config())
    return here


ACCUMULATE = {"accumulate_grad_batches": 2, "precision": "bf16-mixed"}
STEPS = {"max_epochs": -1, "max_steps": 16, "val_check_interval": 0.5}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "workers", "faults"),
    [
        ({}, 0, ["batch_start 4", "epoch_end 6", "save 12"]),
        ({}, 2, ["batch_start 4", "save 6"]),
        (ACCUMULATE, 0, ["batch_start 2", "epoch_end 3", "save 6"]),
        (STEPS, 0, ["batch_start 4", "validation 6", "save 13"]),
    ],
    ids=["plain", "workers", "accumulate_bf16", "max_steps"],
)
def test_a_run_killed_again_and_again_is_the_same_to_the_bit(
    here: Path, whole: Path, trainer: dict[str, Any], workers: int, faults: list[str]
) -> None:
    write_config(here / "tiny.yaml", config({"num_workers": workers}, **trainer))
    fit = ["fit", "--config", "tiny.yaml"]
    killed, uninterrupted = here / SEED0 / "version_0", whole
    if trainer:
        code, out = run(here, *fit)
        assert code == 0, out
        uninterrupted, killed = killed, here / SEED0 / "version_1"
    fit += ["--save.every_steps", "1"]
    again = ["fit", "--config", killed / "config.yaml", "--ckpt_path", "last", *TRUST]
    for command, fault in zip([fit, again, again], faults, strict=False):
        code, out = run(here, *command, fault=f"SIGKILL {fault}")
        assert code == -signal.SIGKILL, out
    code, out = run_fresh(here, *again)
    assert code == 0, out
    assert "Nothing changed." in out
    assert_same_run(uninterrupted, killed)
    assert len(list((here / SEED0).iterdir())) == (2 if trainer else 1)


@pytest.mark.slow
def test_a_job_killed_in_its_source_stage_is_the_same_to_the_bit(here: Path) -> None:
    write_config(here / "source.yaml", config() | {"experiment": "source"})
    for name in ("whole", "killed"):
        write_config(here / f"{name}.yaml", config() | {"source": "source.yaml"})
        fit = ["fit", "--config", f"{name}.yaml", "--runs_dir", name, "--save.every_steps", "1"]
        if name == "killed":
            code, out = run(here, *fit, fault="SIGKILL batch_start 8")
            assert code == 1, out
            assert "The source stage failed" in out
        code, out = run(here, *fit)
        assert code == 0, out
    assert "resumed from killed/source/Bottleneck/seed0/version_0/checkpoints/last.ckpt" in out
    assert not [path.name for path in (here / "killed").iterdir() if path.is_file()]
    for experiment in ("source", "tiny"):
        one, other = (
            here / n / experiment / "Bottleneck/seed0/version_0" for n in ("whole", "killed")
        )
        assert_same_run(one, other)


@pytest.mark.slow
def test_a_killed_fusion_is_the_same_to_the_bit(here: Path) -> None:
    for number in (0, 1):
        source = config(max_epochs=1) | {"experiment": f"source{number}"}
        source["model"]["init_args"]["adapter"]["init_args"] = {"rank": 2, "dropout": 0.1 * number}
        write_config(here / f"source{number}.yaml", source)
    fusion = config(max_epochs=2)
    fusion["model"]["init_args"]["adapter"] = {
        "class_path": "kora.adapters.AdapterFusion",
        "init_args": {"sources": ["source0.yaml", "source1.yaml"]},
    }
    write_config(here / "tiny.yaml", fusion)
    fit = ["fit", "--config", "tiny.yaml", "--save.every_steps", "1"]
    code, out = run(here, *fit)
    assert code == 0, out
    runs = here / "runs/tiny/AdapterFusion/seed0"
    code, out = run(here, *fit, fault="SIGKILL batch_start 7")
    assert code == -signal.SIGKILL, out
    again = ["fit", "--config", runs / "version_1/config.yaml", "--ckpt_path", "last", *TRUST]
    code, out = run(here, *again)
    assert code == 0, out
    assert_same_run(runs / "version_0", runs / "version_1")


@pytest.mark.slow
def test_a_killed_run_of_two_processes_is_the_same_to_the_bit(here: Path) -> None:
    write_config(here / "tiny.yaml", config(devices=2, strategy="ddp"))
    fit = ["fit", "--config", "tiny.yaml", "--save.every_steps", "1"]
    code, out = run(here, *fit)
    assert code == 0, out
    code, out = run(here, *fit, fault="SIGKILL batch_start 4 0")
    assert code, out
    again = [*fit, "--resume"]
    code, out = run(here, *again)
    assert code == 0, out
    assert_same_run(here / SEED0 / "version_0", here / SEED0 / "version_1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("SIGTERM step 5", 143),  # the last batch of an epoch: a validation is next
        ("SIGTERM validation 6", 143),
        ("SIGHUP step 2", 143),  # the terminal was closed
        ("SIGINT step 3", 130),
        ("error validation 6", 1),
        ("nan after_backward 3", 1),
    ],
)
def test_a_stopped_run_leaves_a_checkpoint_from_which_it_is_the_same_to_the_bit(
    tiny: Path, whole: Path, fault: str, expected: int
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup would have ignored
    try:
        code, out = run(tiny, "fit", "--config", "tiny.yaml", fault=fault)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert code == expected, out
    if expected == 143:
        assert fault.split()[0] in out
    stopped = tiny / SEED0 / "version_0"
    command = next(line for line in out.splitlines() if line.startswith("kora fit "))
    assert command.endswith("version_0/checkpoints/last.ckpt --trust tests.support.armed")
    assert not (stopped / "results.json").exists()
    code, out = run(tiny, "fit", "--config", "tiny.yaml", "--resume")
    assert code == 0, out
    assert_same_run(whole, stopped)


@pytest.fixture(scope="module")
def in_half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of `config()` that an error stopped after step 4."""
    folder = tmp_path_factory.mktemp("in_half")
    write_config(folder / "tiny.yaml", config())
    code, out = run(folder, "fit", "--config", "tiny.yaml", fault="error step 4")
    assert code == 1, out
    assert checkpoint(folder / SEED0 / "version_0")["global_step"] == 4
    return folder


@pytest.fixture
def stopped(tiny: Path, in_half: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """That run, in `tiny`."""
    monkeypatch.delenv("KORA_RESUMES", raising=False)
    shutil.copytree(in_half / "runs", tiny / "runs")
    yield tiny / SEED0 / "version_0"
    os.environ.pop("KORA_RESUMES", None)


def resume(capfd: Capture, *args: str | Path, run: Path) -> Outcome:
    config = run / "config.yaml"
    return kora(capfd, "fit", "--config", config, *args, "--ckpt_path", "last", *TRUST)


def test_a_new_learning_rate_is_shown_and_used(stopped: Path, capfd: Capture) -> None:
    lr = ("--model.optimizer", "AdamW", "--model.optimizer.lr", "0.01")
    outcome = resume(capfd, *lr, run=stopped)
    assert outcome.code == 0, outcome.err
    assert "model.optimizer.lr: " in outcome.out
    assert "-> 0.01" in outcome.out
    last = checkpoint(stopped)
    assert {group["initial_lr"] for group in last["optimizer_states"][0]["param_groups"]} == {0.01}
    assert set(last["lr_schedulers"][0]["base_lrs"]) == {0.01}
    kept = yaml.safe_load((stopped / "config.before_resume_0.yaml").read_text())
    now = yaml.safe_load((stopped / "config.yaml").read_text())
    assert kept["model"]["init_args"] != now["model"]["init_args"]
    assert now["ckpt_path"] is None


def test_a_longer_schedule_is_used_if_it_is_typed_and_refused_if_not(
    stopped: Path, capfd: Capture
) -> None:
    longer = yaml.safe_load((stopped / "config.yaml").read_text())
    longer["trainer"]["max_epochs"] = 4
    outcome = kora(
        capfd, "fit", "--config", write_config(stopped.parent / "longer.yaml", longer),
        "--ckpt_path", stopped / "checkpoints/last.ckpt",
    )  # fmt: skip
    assert outcome.code == 2
    assert "trainer.max_epochs: 3 -> 4" in outcome.out
    assert "'cosine' over 24 steps" in outcome.err
    assert "18 steps" in outcome.err
    outcome = resume(capfd, "--trainer.max_epochs", "4", run=stopped)
    assert outcome.code == 0, outcome.err
    assert "the schedule is now 'cosine' over 24 steps" in outcome.out
    assert checkpoint(stopped)["global_step"] == 24


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--model.adapter", "LoRA"), "of kora.adapters.Bottleneck; this run has"),
        (("--seed_everything", "1"), "cannot change seed_everything: 0 in the checkpoint, 1 here"),
        (("--data.val_images", "13"), "cannot change the training and validation images"),
        (("--data.batch_size", "9"), "within an epoch of 7 images a batch"),
        (("--model.optimizer", "SGD", "--model.optimizer.lr", "0.1"), "change model.optimizer"),
        (("--trainer.max_steps", "4"), "trainer.max_steps -1 -> 4 would change the record alone"),
    ],
)
def test_what_cannot_be_honoured_is_refused_and_the_run_stays_as_it_is(
    stopped: Path, capfd: Capture, args: tuple[str, ...], words: str
) -> None:
    names = ("checkpoints/last.ckpt", "config.yaml", "splits.json")
    before = [(stopped / name).read_bytes() for name in names]
    outcome = resume(capfd, *args, run=stopped)
    assert outcome.code == 2, outcome.err
    assert words in outcome.err
    assert [(stopped / name).read_bytes() for name in names] == before
    assert not list(stopped.glob("config.before_resume_*"))
    assert len(logged(stopped)) == 4


def test_a_damaged_log_is_named_before_anything_goes_on(stopped: Path, capfd: Capture) -> None:
    (stopped / "metrics.csv").write_bytes(b"epoch,step\n0,\xff\n")
    for more in ((), ("--experiment", "elsewhere")):
        outcome = resume(capfd, *more, run=stopped)
        assert outcome.code == 1
        (line,) = outcome.err.splitlines()
        assert f"{stopped.relative_to(stopped.parents[4])}/metrics.csv is damaged" in line
        assert "Move it away" in line
    assert not list(Path("runs/elsewhere").rglob("version_*"))
    (stopped / "metrics.csv").rename("away.csv")
    assert resume(capfd, run=stopped).code == 0


def test_without_resume_the_same_command_begins_a_new_run(stopped: Path, capfd: Capture) -> None:
    before = (stopped / "checkpoints/last.ckpt").read_bytes()
    outcome = kora(capfd, "fit", "--config", "tiny.yaml")
    assert outcome.code == 0, outcome.err
    assert checkpoint(stopped.with_name("version_1"))["global_step"] == 18
    assert len(logged(stopped.with_name("version_1"))) == 22
    assert (stopped / "checkpoints/last.ckpt").read_bytes() == before


def test_resume_takes_the_unfinished_run_of_this_config_or_says_that_there_is_none(
    stopped: Path, capfd: Capture
) -> None:
    other = kora(capfd, "fit", "--config", "tiny.yaml", "--resume", "--data.augment", "none")
    assert other.code == 0, other.err  # what was typed may differ
    assert "data.augment: 'flip_crop_color' -> 'none'" in other.out
    for args in (("--resume",), ("--resume", "true", "--model.head_lr", "0.1")):
        none = kora(capfd, "fit", "--config", "tiny.yaml", *args)
        assert none.code == 2
        assert "no unfinished run of this config" in none.err
    assert sorted(f.name for f in stopped.parent.iterdir()) == ["version_0"]
    auto = ("--resume", "auto", "--trainer.max_epochs", "1")
    new = kora(capfd, "fit", "--config", "tiny.yaml", *auto)
    assert new.code == 0, new.err
    assert sorted(f.name for f in stopped.parent.iterdir()) == ["version_0", "version_1"]
    another = kora(capfd, "fit", "--config", "tiny.yaml", "--model.adapter", "BitFit", *auto)
    assert another.code == 0, another.err  # not the run of LoRA, which is none of it
    assert "nothing to resume; this is a new run." in another.out
    assert yaml.safe_load((stopped / "config.yaml").read_text())["resume"] is False


def test_resume_takes_the_folder_of_a_run(stopped: Path, whole: Path, capfd: Capture) -> None:
    before = checkpoint(stopped)["callbacks"]["RunRecord"]["fit_seconds"]
    outcome = kora(capfd, "fit", "--resume", stopped, *TRUST)
    assert outcome.code == 0, outcome.err
    assert results(stopped)["seconds"]["fit"] > before > 0
    assert_same_run(whole, stopped)


def test_two_processes_never_train_one_run(stopped: Path, capfd: Capture) -> None:
    ready, hold = os.pipe(), os.pipe()
    holder = os.fork()
    if not holder:
        try:
            with (stopped / ".running").open("w") as file:
                fcntl.lockf(file, fcntl.LOCK_EX)
                os.write(ready[1], b"x")
                os.read(hold[0], 1)
        finally:
            os._exit(0)
    try:
        os.read(ready[0], 1)
        named = resume(capfd, run=stopped)
        searched = kora(capfd, "fit", "--config", "tiny.yaml", "--resume")
    finally:
        os.write(hold[1], b"x")
        os.waitpid(holder, 0)
    assert named.code == 1
    assert "Another process is at work on the run" in named.err
    assert searched.code == 2
    assert "a process is at work on it" in searched.err
    assert resume(capfd, run=stopped).code == 0  # and it does not outlive its process


def test_a_finished_run_that_goes_on_stays_as_it_is_and_its_best_can_win(
    tiny: Path, whole: Path, capfd: Capture
) -> None:
    copy = tiny / SEED0 / "version_0"
    shutil.copytree(whole, copy)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    still = ("--model.optimizer", "AdamW", "--model.optimizer.lr", "0")
    outcome = resume(capfd, *still, "--trainer.max_epochs", "4", run=copy)
    assert outcome.code == 0, outcome.err
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    new = copy.with_name("version_1")
    assert checkpoint(new)["global_step"] == 24
    assert checkpoint(new, "best")["global_step"] == checkpoint(copy, "best")["global_step"]
    best = "best_val/accuracy"
    assert results(new)["metrics"][best] == results(copy)["metrics"][best]
    assert logged(new)[:21] == logged(copy)[:21]  # the last row is of the test


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--model.head_lr", "0.5"), "model.head_lr"),
        (("--data.val_images", "13"), "cannot change the training and validation images"),
        (("--trainer.max_epochs", "2"), "trainer.max_epochs 3 -> 2"),
    ],
)
def test_where_nothing_is_left_to_train_no_setting_of_the_training_changes(
    tiny: Path, whole: Path, capfd: Capture, args: tuple[str, ...], words: str
) -> None:
    copy = tiny / SEED0 / "version_0"
    shutil.copytree(whole, copy)
    outcome = resume(capfd, *args, run=copy)
    assert outcome.code == 2, outcome.err
    assert words in outcome.err
    assert "begin a new run" in outcome.err
    assert not (copy.with_name("version_1") / "results.json").exists()


def test_a_run_whose_training_is_over_keeps_its_seconds(
    tiny: Path, whole: Path, capfd: Capture
) -> None:
    copy = tiny / SEED0 / "version_0"
    shutil.copytree(whole, copy)
    (copy / "results.json").unlink()  # as if it had been killed in its test
    assert resume(capfd, "--data.eval_batch_size", "3", run=copy).code == 0
    fit_s = checkpoint(copy)["callbacks"]["RunRecord"]["fit_seconds"]
    assert results(copy)["seconds"]["fit"] == round(fit_s, 3)


@pytest.mark.parametrize("short", [["-c", "FILE"], ["-c=FILE"]])
def test_a_config_may_be_named_in_short(tmp_path: Path, short: list[str]) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / LAST_CHECKPOINT).touch()
    config = str(run / "config.yaml")
    words = [word.replace("FILE", config) for word in short]
    last = ["--ckpt_path", str(run / LAST_CHECKPOINT)]
    assert resume_arguments(["fit", *words, "--ckpt_path", "last"]) == [
        "fit", "--config", config, *last
    ]  # fmt: skip
    words = [word.replace("FILE", "mine.yaml") for word in short]
    found = resume_arguments(["fit", *words, "--resume", str(run)])
    assert found == ["fit", "--config", "mine.yaml", *last]
