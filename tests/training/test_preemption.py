"""What stops a run says why, on one process and on two."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.support.armed import ARMED, run
from tests.support.cli import kora, write_config
from tests.support.resuming import SEED0, checkpoint, config

pytestmark = pytest.mark.runs

Capture = pytest.CaptureFixture[str]


def test_a_gradient_that_is_not_finite_names_the_samples_and_is_not_stepped(
    here: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(here / "tiny.yaml", config())
    monkeypatch.setenv(ARMED, "nan after_backward 3")
    outcome = kora(capfd, "fit", "--config", "tiny.yaml")
    assert outcome.code == 1
    found = re.search(r"not finite in epoch 0, batch 3 \(samples ([\d, ]+)\)", outcome.err)
    assert found, outcome.err
    assert len(found[1].split(", ")) == 7
    last = checkpoint(here / SEED0 / "version_0")
    assert last["global_step"] == 3
    assert all(torch.isfinite(value).all() for value in last["state_dict"].values())


def test_a_loss_that_is_not_finite_stops_the_run_with_the_last_good_state(
    here: Path, capfd: Capture
) -> None:
    write_config(here / "tiny.yaml", config())
    huge = ("--model.optimizer", "SGD", "--model.optimizer.lr", "1e30", "--model.schedule")
    outcome = kora(capfd, "fit", "--config", "tiny.yaml", *huge, "constant")
    assert outcome.code == 1
    assert "Training stopped: " in outcome.err
    assert "(samples " in outcome.err
    last = checkpoint(here / SEED0 / "version_0")
    assert all(torch.isfinite(value).all() for value in last["state_dict"].values())


def test_slurms_signal_queues_the_job_again_and_the_same_command_goes_on(
    here: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(here / "tiny.yaml", config())
    (here / "scontrol").write_text('#!/bin/sh\necho "$@" > asked.txt\n')
    (here / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{here}:{os.environ['PATH']}")
    for name, value in (
        ("JOB_ID", "77"), ("JOB_NAME", "kora"), ("NTASKS", "1"), ("PROCID", "0"), ("LOCALID", "0"),
        ("NODEID", "0"), ("NTASKS_PER_NODE", "1"),
    ):  # fmt: skip
        monkeypatch.setenv(f"SLURM_{name}", value)
    command = ("fit", "--config", "tiny.yaml", "--resume", "auto")
    code, out = run(here, *command, fault="SIGUSR1 step 2")
    assert code == 143, out
    assert "job 77 is queued again after step 3" in out
    assert (here / "asked.txt").read_text() == "requeue 77\n"
    code, out = run(here, *command)
    assert code == 0, out
    assert "resuming (epoch 0, 3 of 6 batches done)" in out
    code, out = run(here, "fit", "--config", "tiny.yaml", "--trainer.max_epochs", "1")
    assert code == 0, out
    assert "resuming" not in out
    assert sorted(f.name for f in (here / SEED0).iterdir()) == ["version_0", "version_1"]


@pytest.mark.parametrize("where", ["batch_start", "validation"])
def test_sigterm_to_the_workers_of_the_loaders_too_stops_as_one_to_the_run_alone(
    here: Path, where: str
) -> None:
    settings = config()
    settings["data"]["init_args"]["num_workers"] = 2
    write_config(here / "tiny.yaml", settings)
    code, out = run(here, "fit", "--config", "tiny.yaml", fault=f"all {where} 2")
    assert code == 128 + signal.SIGTERM, out
    assert "Traceback" not in out
    assert "kora: stopped by SIGTERM after step" in out
    code, out = run(here, "fit", "--config", "tiny.yaml", "--resume")
    assert code == 0, out


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_in_a_step_of_two_processes_leaves_a_checkpoint_and_ends_both(
    here: Path, rank: int
) -> None:
    write_config(here / "tiny.yaml", config(devices=2, strategy="ddp"))
    code, out = run(here, "fit", "--config", "tiny.yaml", fault=f"SIGTERM step 2 {rank}")
    ended = time.time()
    assert code == 128 + signal.SIGTERM, out
    assert ended - (here / "struck").stat().st_mtime < 30
    assert "kora: stopped by SIGTERM after step 3. To resume:" in out
    last = checkpoint(here / SEED0 / "version_0")
    assert (last["resume"]["epoch"], last["resume"]["batches"]) == (0, 3)
