"""The commands that W&B would run for each sweep file are ones that kora takes, and leave runs."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from kora.cli.listing import is_sweep
from kora.loggers.wandb_run import wandb_run_id
from kora.training.lightning_cli import parse
from tests.support.cli import REPOSITORY, tiny_config, write_config
from tests.support.commands import assert_accepted
from tests.support.kept import kept
from tests.support.wandb_files import config_of, offline_folder, records, without_login

SWEEPS = [path for path in sorted((REPOSITORY / "configs").rglob("*.yaml")) if is_sweep(path)]
SMALL = 1e-05  # as a sweep may draw it: YAML 1.1 takes its text for a word


def load(path: Path) -> dict[str, Any]:
    sweep: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return sweep


def corners(sweep: dict[str, Any]) -> list[dict[str, Any]]:
    """The trials at the ends of each range, with each value of a list."""
    ends = {
        name: given["values"] if "values" in given else [given["min"], given["max"]]
        for name, given in sweep["parameters"].items()
    }
    return [dict(zip(ends, trial, strict=True)) for trial in itertools.product(*ends.values())]


def command(sweep: dict[str, Any], trial: dict[str, Any]) -> list[str]:
    """What an agent of W&B runs for a trial, less `/usr/bin/env`."""
    # Here: its imports take a second.
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    filled = create_sweep_command_args({"args": {k: {"value": v} for k, v in trial.items()}})
    words = {"${env}": [], "${program}": [sweep["program"]], "${args}": filled["args"]}
    parts = create_sweep_command(list(sweep["command"]))
    return [word for part in parts for word in words.get(part, [part])]


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # parsing sets it; monkeypatch puts it back


def test_there_are_sweeps_of_both_experiments() -> None:
    assert {path.stem for path in SWEEPS} >= {"quickstart", "tinyimagenet_transfer"}


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_goes_by_validation_and_never_by_the_test(path: Path) -> None:
    metric = load(path)["metric"]
    assert metric == {"name": "best_val/accuracy", "goal": "maximize"}


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_corner_of_a_sweep_is_a_command_that_kora_takes(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sweep = load(path)
    trials = corners(sweep)
    assert len(trials) >= 8
    for trial in trials:
        words = command(sweep, trial)
        assert words[:2] == ["kora", "fit"]
        assert_accepted(shlex.join(words), capfd)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_values_of_a_trial_arrive_whatever_their_order(path: Path) -> None:
    sweep = load(path)
    for first in corners(sweep)[:: len(corners(sweep)) - 1]:
        trial = {**first, "model.optimizer.lr": SMALL}
        backwards = dict(reversed(trial.items()))
        one, other = (parse(command(sweep, it)[1:]).resolved() for it in (trial, backwards))
        assert one == other
        arguments = one["model"]["init_args"]
        optimizer = arguments["optimizer"]["init_args"]
        assert optimizer["lr"] == SMALL
        assert isinstance(optimizer["lr"], float)
        assert optimizer["weight_decay"] == trial["model.optimizer.weight_decay"]
        adapter = yaml.safe_load(Path(trial["config"]).read_text())["model"]["init_args"]
        assert arguments["adapter"]["class_path"] == adapter["adapter"]["class_path"]
        assert one["experiment"].endswith("_sweep")  # apart from the runs of other commands


AGENT = """
import json, multiprocessing, sys
from wandb.wandb_agent import Agent

sweep, *trials = json.loads(sys.argv[1])
agent = Agent(None, multiprocessing.Queue())
agent._sweep_command = sweep["command"]
for number, trial in enumerate(trials):
    args = {name: {"value": value} for name, value in trial.items()}
    run = {"type": "run", "run_id": f"trial{number}", "program": sweep["program"], "args": args}
    agent._command_run(run)
    if agent._run_processes[f"trial{number}"].wait():
        sys.exit(f"trial {number} failed")
"""


@pytest.mark.slow
def test_trials_that_an_agent_starts_have_folders_of_their_own_and_the_ids_of_the_agent(
    tmp_path: Path,
) -> None:
    sweep = load(REPOSITORY / "configs/sweeps/quickstart.yaml")
    place = sweep["command"].index("--config=configs/quickstart.yaml")
    sweep["command"][place] = "--config=tiny.yaml"
    config = tiny_config(source="source.yaml")
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1}}
    config["model"]["init_args"] |= {"optimizer": optimizer}
    write_config(tmp_path / "tiny.yaml", config)
    write_config(tmp_path / "source.yaml", tiny_config(experiment="tiny_source"))
    lora = str(REPOSITORY / "configs/adapters/lora.yaml")
    rates = (0.001, 0.01)
    trials = [{"model.optimizer.lr": lr, "config": lora} for lr in rates]
    tools = tmp_path / "bin"
    environment = without_login(
        tmp_path, PATH=f"{tools}{os.pathsep}{os.environ['PATH']}", WANDB_MODE="offline",
        WANDB_SWEEP_ID="sweep1",
    )  # fmt: skip
    with kept(REPOSITORY, tools):
        done = subprocess.run(
            [sys.executable, "-c", AGENT, json.dumps([sweep, *trials])], cwd=tmp_path,
            env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=500,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    parent = tmp_path / "runs/quickstart_sweep/LoRA/seed0"
    assert [path.name for path in sorted(parent.iterdir())] == ["version_0", "version_1"]
    for number, lr in enumerate(rates):
        folder = parent / f"version_{number}"
        assert (folder / "results.json").is_file()
        assert wandb_run_id(folder) == f"trial{number}"
        (own,) = [r.run for r in records(offline_folder(folder)) if r.HasField("run")]
        assert (own.run_id, own.sweep_id) == (f"trial{number}", "sweep1")
        config = config_of(offline_folder(folder))
        assert config["model.optimizer.lr"] == lr
        assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == lr
    sources = sorted((tmp_path / "runs/tiny_source/LoRA/seed0").iterdir())
    assert len(sources) == 2  # each has the trial's optimiser
    for folder in sources:
        (own,) = [r.run for r in records(offline_folder(folder)) if r.HasField("run")]
        assert own.sweep_id == ""
        assert own.run_id == wandb_run_id(folder)
        assert not own.run_id.startswith("trial")
