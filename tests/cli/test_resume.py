"""A run that was stopped goes on as if it had not been."""

from __future__ import annotations

import csv
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.faults import run
from tests.cli.support import kora, results, tiny_config, write_config

Capture = pytest.CaptureFixture[str]
SEED0 = Path("runs/tiny/Bottleneck/seed0")


def config(**trainer: Any) -> dict[str, Any]:
    """Six batches an epoch, with everything that draws: shuffle, augmentation, drop path."""
    made = tiny_config()
    made["model"]["init_args"]["adapter"] = {
        "class_path": "kora.adapters.Bottleneck", "init_args": {"drop_path": 0.3},
    }  # fmt: skip
    made["data"]["init_args"] |= {"batch_size": 7, "augment": "flip_crop_color"}
    faults = [{"class_path": "tests.cli.faults.Fault"}]
    made["trainer"] |= {"max_epochs": 3, "log_every_n_steps": 1, "callbacks": faults} | trainer
    return made


def logged(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, without the columns that are empty in them."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def checkpoint(folder: Path, name: str = "last") -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True)
    return content


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "data"),
    [
        ({}, {}),
        ({}, {"num_workers": 2}),
        ({"accumulate_grad_batches": 2, "precision": "bf16-mixed"}, {}),
        ({"max_epochs": -1, "max_steps": 16, "val_check_interval": 0.5}, {"val_images": 13}),
    ],
    ids=["plain", "workers", "accumulate_bf16", "max_steps"],
)
def test_a_run_killed_three_times_is_the_same_to_the_bit(
    here: Path, capfd: Capture, trainer: dict[str, Any], data: dict[str, Any]
) -> None:
    made = config(**trainer)
    made["data"]["init_args"] |= data
    write_config(here / "whole.yaml", made)
    step = 2 if trainer.get("accumulate_grad_batches") == 1 else 1
    fit = ["fit", "--config", "whole.yaml", "--save.every_steps", str(step)]
    assert kora(capfd, *fit).code == 0
    whole, killed = here / SEED0 / "version_0", here / SEED0 / "version_1"
    steps_an_epoch = 3 if "accumulate_grad_batches" in trainer else 6
    faults = [
        f"SIGKILL batch_start {steps_an_epoch // 2 + 1}",
        f"SIGKILL epoch_end {steps_an_epoch}",
        f"SIGKILL save {2 * steps_an_epoch}",
    ]
    code, out = run(here, *fit, fault=faults[0])
    assert code == -signal.SIGKILL, out
    again = ["fit", "--config", killed / "config.yaml", "--ckpt_path", "last"]
    for fault in faults[1:]:
        code, out = run(here, *again, fault=fault)
        assert code == -signal.SIGKILL, out
    code, out = run(here, *again)
    assert code == 0, out
    assert "Nothing changed." in out
    assert_same_run(whole, killed)
    assert [f.name for f in sorted((here / SEED0).iterdir())] == ["version_0", "version_1"]
