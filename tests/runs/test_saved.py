"""What was saved before modules were moved stays readable: class paths that files name are kept."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import datamodules
import kora
from kora.runs.outcomes import read_outcomes
from kora.runs.search import config_hash
from tests.support.cli import here, results
from tests.support.cli import kora as command

__all__ = ["here"]

SAVED = Path(__file__).parent / "saved"
RUN = SAVED / "classification"
FOLDER = "runs/before_the_move/KoRA-over-LoRA/seed0/version_0"


@pytest.mark.parametrize(
    "path",
    [
        "kora.adapters.KoRA",
        "kora.tasks.ClassificationTask",
        "kora.tasks.DepthTask",
        "kora.heads.LinearDepth",
        "kora.losses.SILogLoss",
        "kora.sharding.ShardedBackbone",
        "kora.backbones.Backbone",
        "datamodules.Synthetic",
    ],
)
def test_a_class_path_of_old_files_names_the_class(path: str) -> None:
    module, _, name = path.rpartition(".")
    assert getattr(importlib.import_module(module), name).__name__ == name


def test_a_run_is_tested_again_with_its_checkpoint(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint = ("--ckpt_path", RUN / "checkpoints/last.ckpt")
    done = command(capfd, "test", "--config", RUN / "config.yaml", *checkpoint)
    assert done.code == 0, done.err
    again = results(here / FOLDER)
    assert again["metrics"]["test/accuracy"] == results(RUN)["metrics"]["test/accuracy"]
    assert command(capfd, "compare", RUN).code == 0


def test_a_run_resumes(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = here / FOLDER
    shutil.copytree(RUN, run)
    (run / "results.json").unlink()
    done = command(capfd, "fit", "--resume", run, "--trainer.max_epochs", "2")
    assert done.code == 0, done.err
    assert "class_path" not in done.out  # a class that moved is no setting that changed
    assert results(run)["metrics"]["test/accuracy"] > 0


def test_a_run_counts_as_that_of_its_config(here: Path) -> None:
    text = (RUN / "config.yaml").read_text(encoding="utf-8")
    assert "kora.backbones.Backbone" in text
    moved = text.replace("kora.backbones.Backbone", "kora.backbone.vit.Backbone")
    for config in (text, moved):
        assert config_hash(yaml.safe_load(config)) == results(RUN)["config_sha256"]


def test_an_adapter_predicts_what_it_predicted() -> None:
    config = {"image_size": 32, "train_images": 48, "test_images": 24, "val_images": 12}
    data = datamodules.Synthetic(**config, batch_size=24)
    data.prepare_data()
    data.setup("test")
    (batch,) = data.test_dataloader()
    model = kora.load_adapter(RUN)
    with torch.inference_mode():
        found = model(batch["image"]).argmax(1).numpy()
    outcomes = read_outcomes(RUN)
    assert outcomes is not None
    assert np.array_equal(found, outcomes.columns["prediction"])


def test_a_config_of_a_depth_run_is_read(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = command(capfd, "fit", "--config", SAVED / "depth.yaml")
    assert done.code == 0, done.err
