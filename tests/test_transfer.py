"""Which source run fits a job, and what the source stage takes from it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from kora.checkpoints import ADAPTER_CONFIG
from kora.transfer import find_source_run, source_overrides, train_source

SHA256 = "ab" * 32
CONFIG: dict[str, Any] = {
    "seed_everything": 3,
    "experiment": "target",
    "runs_dir": "elsewhere",
    "source": "source.yaml",
    "wandb": {"mode": "disabled"},
    "trainer": {
        "accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto",
        "precision": "bf16-mixed", "enable_progress_bar": False, "max_epochs": 7, "logger": None,
    },
    "model": {
        "class_path": "kora.tasks.ClassificationTask",
        "init_args": {
            "backbone": {"name": "vit_nano"}, "adapter": {"class_path": "LoRA"}, "head_lr": 0.1,
            "optimizer": {"class_path": "SGD"}, "adapter_from": None,
        },
    },
    "data": {"class_path": "datamodules.Synthetic", "init_args": {"style": "night"}},
}  # fmt: skip


def changed(path: str, value: Any) -> dict[str, Any]:
    """CONFIG with one value changed; the path has dots."""
    config = copy.deepcopy(CONFIG)
    *parents, last = path.split(".")
    inner = config
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return config


def write_run(parent: Path, name: str, config: dict[str, Any]) -> Path:
    """The files that make a finished run."""
    folder = parent / name
    (folder / "adapter").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "results.json").write_text("{}", encoding="utf-8")
    record = {
        "format": 1,
        "adapter": {"class_path": "kora.adapters.LoRA", "init_args": {}},
        "backbone": {"name": "vit_nano", "sha256": SHA256},
    }
    (folder / "adapter" / ADAPTER_CONFIG).write_text(json.dumps(record), encoding="utf-8")
    return folder


def test_a_run_of_the_same_config_is_found(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "version_0", CONFIG)
    assert find_source_run(tmp_path, CONFIG, SHA256) == folder


def test_the_newest_is_taken_by_number_and_not_by_letter(tmp_path: Path) -> None:
    for number in (2, 10, 9):
        write_run(tmp_path, f"version_{number}", CONFIG)
    assert find_source_run(tmp_path, CONFIG, SHA256) == tmp_path / "version_10"


def test_a_newer_run_of_another_config_does_not_hide_an_older_that_fits(tmp_path: Path) -> None:
    write_run(tmp_path, "version_0", CONFIG)
    write_run(tmp_path, "version_1", changed("trainer.max_epochs", 1))
    assert find_source_run(tmp_path, CONFIG, SHA256) == tmp_path / "version_0"


@pytest.mark.parametrize("missing", ["config.yaml", "results.json", f"adapter/{ADAPTER_CONFIG}"])
def test_an_unfinished_run_does_not_fit(tmp_path: Path, missing: str) -> None:
    folder = write_run(tmp_path, "version_0", CONFIG)
    (folder / missing).unlink()
    assert find_source_run(tmp_path, CONFIG, SHA256) is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed_everything", 4),
        ("experiment", "other"),
        ("source", None),
        ("trainer.max_epochs", 8),
        ("trainer.precision", "32-true"),
        ("model.init_args.adapter", {"class_path": "KoRA"}),
        ("model.init_args.backbone", {"name": "vit_tiny_patch16_224"}),
        ("model.init_args.head_lr", 0.2),
        ("data.init_args.style", "paint"),
    ],
)
def test_whatever_changes_the_result_makes_another_run(
    tmp_path: Path, path: str, value: Any
) -> None:
    write_run(tmp_path, "version_0", CONFIG)
    assert find_source_run(tmp_path, changed(path, value), SHA256) is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("trainer.accelerator", "gpu"),
        ("trainer.devices", "auto"),
        ("trainer.enable_progress_bar", True),
        ("trainer.logger", False),
        ("wandb", {"mode": "online"}),
        ("runs_dir", "there"),
    ],
)
def test_where_and_how_loudly_it_ran_does_not_matter(tmp_path: Path, path: str, value: Any) -> None:
    folder = write_run(tmp_path, "version_0", CONFIG)
    assert find_source_run(tmp_path, changed(path, value), SHA256) == folder


def test_an_adapter_of_other_frozen_weights_does_not_fit(tmp_path: Path) -> None:
    write_run(tmp_path, "version_0", CONFIG)
    assert find_source_run(tmp_path, CONFIG, "cd" * 32) is None


def test_other_names_than_version_n_are_left_alone(tmp_path: Path) -> None:
    write_run(tmp_path, "version_old", CONFIG)
    write_run(tmp_path, "best", CONFIG)
    assert find_source_run(tmp_path, CONFIG, SHA256) is None
    assert find_source_run(tmp_path / "nowhere", CONFIG, SHA256) is None


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
