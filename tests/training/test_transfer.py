"""What the source stage takes from a job, and how it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kora.training.transfer import source_overrides, train_source

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
