"""kora params and kora data look at a config without training anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.cli import kora, results, tiny_config, write_config
from tests.support.data_factory import write_class_folders

Capture = pytest.CaptureFixture[str]
#: LoRA of rank 2 on vit_nano: R * (d_in + d_out) at each of qkv, proj, fc1, fc2 of its 6 blocks.
LORA = 6 * 2 * ((128 + 384) + (128 + 128) + (128 + 512) + (512 + 128))
HEAD = 128 * 12 + 12


def test_params_counts_what_the_formula_says(here: Path, capfd: Capture) -> None:
    outcome = kora(capfd, "params", "--config", "tiny.yaml", "--json")
    assert outcome.code == 0, outcome.err
    counted = json.loads(outcome.out)
    assert counted["trainable"] == LORA + HEAD
    assert counted["head"] == HEAD
    assert counted["percent"] == round(100 * counted["trainable"] / counted["total"], 3)


def test_params_counts_what_a_run_records(here: Path, capfd: Capture) -> None:
    counted = json.loads(kora(capfd, "params", "--config", "tiny.yaml", "--json").out)
    assert kora(capfd, "fit", "--config", "tiny.yaml").code == 0
    assert results(here / "runs/tiny/LoRA/seed0/version_0")["parameters"] == counted


def test_the_table_has_a_row_a_block_and_a_column_a_site(here: Path, capfd: Capture) -> None:
    out = kora(capfd, "params", "--config", "tiny.yaml").out
    assert "LoRA on vit_nano" in out
    for site in ("qkv", "proj", "fc1", "fc2", "head"):
        assert site in out
    first = next(line for line in out.splitlines() if line.strip("│ ").startswith("0"))
    assert "1,024" in first  # R * (d_in + d_out) = 2 * (128 + 384) at qkv
    assert f"{LORA + HEAD:,}" in out


def test_options_after_the_config_count(here: Path, capfd: Capture) -> None:
    args = ("params", "--config", "tiny.yaml", "--json")
    double = json.loads(kora(capfd, *args, "--model.adapter.rank", "4").out)
    assert double["trainable"] == 2 * LORA + HEAD
    probe = json.loads(kora(capfd, *args, "--model.adapter", "LinearProbe").out)
    assert probe["trainable"] == HEAD


def test_later_configs_win(here: Path, capfd: Capture) -> None:
    fragment = {"model": {"init_args": {"adapter": {"class_path": "kora.adapters.LinearProbe"}}}}
    write_config(here / "probe.yaml", fragment)
    args = ("params", "--json", "--config", "tiny.yaml", "--config", "probe.yaml")
    assert json.loads(kora(capfd, *args).out)["trainable"] == HEAD


def test_params_of_a_frozen_adapter_is_the_head_alone(here: Path, capfd: Capture) -> None:
    args = ("params", "--config", "tiny.yaml", "--json", "--model.adapter_trainable", "false")
    assert json.loads(kora(capfd, *args).out)["trainable"] == HEAD


def test_params_needs_no_weights_and_no_data(here: Path, capfd: Capture) -> None:
    config = tiny_config(source="nowhere.yaml")
    config["model"]["init_args"]["backbone"] |= {"weights": "nowhere.safetensors"}
    config["data"] = {"class_path": "datamodules.CIFAR", "init_args": {"variant": 100}}
    write_config(here / "nothing.yaml", config)
    outcome = kora(capfd, "params", "--config", "nothing.yaml", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["head"] == 128 * 100 + 100
    assert {path.name for path in here.iterdir()} == {"tiny.yaml", "nothing.yaml"}


@pytest.mark.parametrize("command", [("params",), ("data", "describe"), ("data", "prepare")])
def test_a_config_is_needed_and_a_mistake_in_it_is_told(
    here: Path, capfd: Capture, command: tuple[str, ...]
) -> None:
    missing = kora(capfd, *command)
    assert missing.code == 2
    assert "--config" in missing.err
    mistyped = kora(capfd, *command, "--config", "tiny.yaml", "--model.adapter.rnk", "3")
    assert mistyped.code == 2
    assert "Did you mean 'rank'?" in mistyped.err
    nowhere = kora(capfd, *command, "--config", "nowhere.yaml")
    assert nowhere.code == 2
    assert "nowhere.yaml" in nowhere.err


def test_describe_says_sizes_classes_and_the_audit(here: Path, capfd: Capture) -> None:
    outcome = kora(capfd, "data", "describe", "--config", "tiny.yaml")
    assert outcome.code == 0, outcome.err
    assert "12 classes, 32x32 pixels" in outcome.out
    assert "Audit of the splits" in outcome.out
    assert "chance" in outcome.out


def test_describe_as_json_is_the_protocol_that_a_run_records(here: Path, capfd: Capture) -> None:
    outcome = kora(capfd, "data", "describe", "--config", "tiny.yaml", "--json")
    described = json.loads(outcome.out)
    assert described["num_classes"] == 12
    assert described["splits"]["train"]["official_split"] == "train"
    assert described["protocol"]["sizes"] == {"train": 36, "val": 12, "test": 24}
    assert kora(capfd, "fit", "--config", "tiny.yaml").code == 0
    record = results(here / "runs/tiny/LoRA/seed0/version_0")
    assert record["protocol"] == {**described["protocol"], "allow_degenerate": False}
    assert record["audit"] == described["audit"]


def test_describe_uses_the_seed_of_the_run(here: Path, capfd: Capture) -> None:
    args = ("data", "describe", "--config", "tiny.yaml", "--json", "--seed_everything")
    first, other = (json.loads(kora(capfd, *args, seed).out) for seed in ("0", "1"))
    assert first["protocol"]["seed"] == 0
    assert other["protocol"]["seed"] == 1
    assert first["protocol"]["sha256"]["val"] != other["protocol"]["sha256"]["val"]


def test_describe_shows_what_a_run_would_refuse(here: Path, capfd: Capture) -> None:
    config = tiny_config()
    config["data"]["init_args"]["subset"] = {"fraction": 0.1, "how": "first"}
    write_config(here / "degenerate.yaml", config)
    outcome = kora(capfd, "data", "describe", "--config", "degenerate.yaml", "--json")
    assert outcome.code == 0, outcome.err
    audit = json.loads(outcome.out)["audit"]
    assert any("Training covers only" in text for text in audit["problems"])
    shown = kora(capfd, "data", "describe", "--config", "degenerate.yaml").out
    assert "Training covers only" in " ".join(shown.split())


def test_describe_reads_folders_of_ones_own(here: Path, capfd: Capture) -> None:
    write_class_folders(here / "photos")
    config = tiny_config()
    config["data"] = {
        "class_path": "datamodules.ImageFolder",
        "init_args": {"root": "photos", "image_size": 32, "val_images": 3},
    }
    write_config(here / "photos.yaml", config)
    outcome = kora(capfd, "data", "describe", "--config", "photos.yaml", "--json")
    assert outcome.code == 0, outcome.err
    described = json.loads(outcome.out)
    folders = sorted(path.name for path in (here / "photos/train").iterdir())
    assert described["class_names"] == folders


def test_prepare_says_that_the_data_is_ready(here: Path, capfd: Capture) -> None:
    outcome = kora(capfd, "data", "prepare", "--config", "tiny.yaml")
    assert outcome.code == 0, outcome.err
    assert "Synthetic is ready." in outcome.out


def test_an_action_that_does_not_exist_is_told_with_those_that_do(
    here: Path, capfd: Capture
) -> None:
    outcome = kora(capfd, "data", "fetch", "--config", "tiny.yaml")
    assert outcome.code == 2
    assert "describe" in outcome.err
    assert "prepare" in outcome.err
