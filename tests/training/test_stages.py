"""Two-stage transfer: the source stage is trained first, once, and its adapter carried over."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from kora.training.stages import source_overrides, train_source
from tests.support.cli import fit_in, kora, results, started, tiny_config, write_config
from tests.support.forks import fork_the_runs
from tests.support.stored_config import CONFIG

pytestmark = pytest.mark.runs

Capture = pytest.CaptureFixture[str]
SOURCE = "runs/source/LoRA/seed0"


def write_both(folder: Path) -> Path:
    """source.yaml (style paint) and target.yaml (style night)."""
    source = tiny_config(experiment="source")
    source["data"]["init_args"]["style"] = "paint"
    write_config(folder / "source.yaml", source)
    target = tiny_config(experiment="target", source="source.yaml")
    target["data"]["init_args"]["style"] = "night"
    return write_config(folder / "target.yaml", target)


@pytest.fixture
def transfer(here: Path) -> Path:
    """Both configs; nothing has been trained."""
    return write_both(here)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of both."""
    folder = tmp_path_factory.mktemp("trained")
    return fit_in(folder, "--config", write_both(folder))


@pytest.fixture
def transferred(trained: Path, transfer: Path) -> Path:
    """Both configs, and their runs."""
    shutil.copytree(trained / "runs", transfer.parent / "runs")
    return transfer


def adapter(run: Path) -> dict[str, Any]:
    return load_file(run / "adapter/adapter_model.safetensors")


def test_the_source_stage_runs_first_and_is_used_again(transfer: Path, capfd: Capture) -> None:
    here = transfer.parent
    first = kora(capfd, "fit", "--config", transfer)
    assert first.code == 0, first.err
    assert "trained first" in first.out
    record = results(here / "runs/target/LoRA/seed0/version_0")
    assert record["source"]["folder"] == f"{SOURCE}/version_0/adapter"
    assert record["source"]["experiment"] == "source"

    second = kora(capfd, "fit", "--config", transfer)
    assert "used again" in second.out
    assert [p.name for p in sorted((here / SOURCE).iterdir())] == ["version_0"]
    again = results(here / "runs/target/LoRA/seed0/version_1")
    assert again["metrics"] == record["metrics"]

    changed = kora(capfd, "fit", "--config", transfer, "--model.adapter.rank", "1")
    assert changed.code == 0, changed.err
    assert "trained first" in changed.out, "an adapter of another rank does not fit"


@pytest.mark.parametrize("named", [True, False])
def test_a_source_that_names_its_normalisation_keeps_it(
    named: bool, transfer: Path, capfd: Capture
) -> None:
    here = transfer.parent
    cifar = {"mean": [0.507, 0.487, 0.441], "std": [0.268, 0.257, 0.276]}
    if named:
        source = yaml.safe_load((here / "source.yaml").read_text())
        source["model"]["init_args"]["backbone"] |= cifar
        write_config(here / "source.yaml", source)
    own = ("--model.backbone.mean", "[0.485, 0.456, 0.406]")
    own += ("--model.backbone.std", "[0.229, 0.224, 0.225]")
    done = kora(capfd, "fit", "--config", transfer, *own)
    assert done.code == 0, done.err
    target = results(here / "runs/target/LoRA/seed0/version_0")["backbone"]
    first = results(here / SOURCE / "version_0")["backbone"]
    assert target["mean"] == [0.485, 0.456, 0.406]
    assert first["mean"] == (cifar["mean"] if named else target["mean"])
    assert first["sha256"] == target["sha256"]
    again = kora(capfd, "fit", "--config", transfer, *own)
    assert "used again" in again.out


def test_adapter_comes_over_and_the_head_is_new(transferred: Path, capfd: Capture) -> None:
    here = transferred.parent
    args = ("--model.adapter_trainable", "false")
    assert kora(capfd, "fit", "--config", transferred, *args).code == 0
    frozen = here / "runs/target/LoRA/seed0/version_1"
    source, target = adapter(here / SOURCE / "version_0"), adapter(frozen)
    for key, tensor in source.items():
        assert torch.equal(tensor, target[key]) == key.startswith("adapter."), key
    parameters = results(frozen)["parameters"]
    assert parameters["trainable"] == parameters["head"]


def test_under_torchrun_a_missing_source_stage_is_named_as_each_process_would_wait(
    transfer: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_torchrun = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in of_torchrun.items():
        monkeypatch.setenv(name, value)
    two = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
    outcome = kora(capfd, "fit", "--config", transfer, *two)
    assert outcome.code == 2
    assert "Train it first: kora fit --config source.yaml" in outcome.err


@pytest.mark.parametrize("second", ["source.yaml", "target.yaml"])
def test_a_source_that_needs_itself_is_refused(transfer: Path, second: str) -> None:
    source, log = transfer.with_name("source.yaml"), transfer.with_name("log")
    write_config(source, {**yaml.safe_load(source.read_text()), "source": second})
    with started("fit", "--config", "target.yaml", log=log, first=fork_the_runs) as process:
        assert process.wait() == 1
    assert "yaml needs itself, by way of its own source" in log.read_text()


def test_a_resume_needs_the_source_stage_no_more(transferred: Path, capfd: Capture) -> None:
    here = transferred.parent
    run = here / "runs/target/LoRA/seed0/version_0"
    shutil.rmtree(here / "runs/source")
    args = ("--config", run / "config.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "2")
    outcome = kora(capfd, "fit", *args, "--model.head_lr", "0.0003")
    assert outcome.code == 0, outcome.err
    assert not (here / "runs/source").exists()
    went_on = results(run.with_name("version_1"))
    assert went_on["source"] == results(run)["source"]
    assert went_on["source"]["folder"] == f"{SOURCE}/version_0/adapter"


def test_a_trainable_adapter_moves_on_from_the_source(transferred: Path) -> None:
    here = transferred.parent
    source = adapter(here / SOURCE / "version_0")
    target = adapter(here / "runs/target/LoRA/seed0/version_0")
    keys = [key for key in source if key.startswith("adapter.")]
    assert keys
    assert not any(torch.equal(source[key], target[key]) for key in keys)


def test_a_linear_probe_needs_no_source_stage(transfer: Path, capfd: Capture) -> None:
    outcome = kora(capfd, "fit", "--config", transfer, "--model.adapter", "LinearProbe")
    assert outcome.code == 0, outcome.err
    assert "no source stage" in outcome.out
    assert not (transfer.parent / "runs/source").exists()


def test_a_failing_source_stage_stops_the_job_with_its_name(here: Path, capfd: Capture) -> None:
    source = tiny_config(experiment="source")
    source["data"]["init_args"]["subset"] = {"fraction": 0.1, "how": "first"}
    write_config(here / "source.yaml", source)
    write_config(here / "target.yaml", tiny_config(source="source.yaml"))
    outcome = kora(capfd, "fit", "--config", "target.yaml")
    assert outcome.code == 1
    assert "source stage failed" in outcome.err
    assert "kora fit --config source.yaml" in outcome.err
    assert not list(here.rglob("results.json"))
    assert not list(here.rglob(".source_*"))


def test_an_adapter_of_another_backbone_is_refused(transferred: Path, capfd: Capture) -> None:
    outcome = kora(
        capfd, "fit", "--config", "tiny.yaml", "--seed_everything", "1",
        "--model.adapter_from", f"{SOURCE}/version_0/adapter",
    )  # fmt: skip
    assert outcome.code == 2  # seed 1 makes other random weights
    assert "was trained on" in outcome.err


def test_the_source_stage_takes_what_must_agree_and_keeps_its_own_training() -> None:
    taken = source_overrides(CONFIG)
    assert taken["seed_everything"] == 3
    assert taken["runs_dir"] == "elsewhere"
    assert taken["wandb"] == {**CONFIG["wandb"], "job_type": "source"}
    arguments = CONFIG["model"]["init_args"]
    assert taken["model"]["init_args"] == {
        k: arguments[k] for k in ("backbone", "adapter", "optimizer")
    }
    assert taken["trainer"].items() <= CONFIG["trainer"].items()
    assert taken["trainer"]["precision"] == "bf16-mixed"
    assert "max_epochs" not in taken["trainer"]
    assert not {"data", "experiment", "source"} & taken.keys()


def test_a_source_stage_that_fails_is_named_and_leaves_no_file(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with pytest.raises(RuntimeError, match=r"exit code 2.*kora fit --config nowhere\.yaml"):
        train_source("nowhere.yaml", {"runs_dir": str(runs)})
    assert list(runs.iterdir()) == []
