"""With ShardedBackbone each process holds a part of the frozen blocks, and all of what trains.

That its gradients are those of one process is in tests/adapters/test_ddp.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from datamodules.loading import ArrayDataset, as_is
from kora.adapters import FullFineTune, LoRA
from kora.backbone.sharding import ShardedBackbone, not_needed
from kora.backbone.sites import SiteLinear
from kora.tasks import ClassificationTask
from tests.support.armed import run
from tests.support.cli import results, tiny_config, write_config
from tests.support.factory import built, labels_for
from tests.support.families import tiny
from tests.support.two_ranks import QUIET, on_two_ranks

pytestmark = pytest.mark.slow
RUN = Path("runs/tiny/LoRA/seed0/version_0")


def train_one_step(task: ClassificationTask, **options: Any) -> None:
    images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    data = ArrayDataset({"image": images, "label": labels_for(images)})
    trainer = Trainer(strategy=ShardedBackbone(), devices=2, max_steps=1, **QUIET, **options)
    trainer.fit(task, DataLoader(data, batch_size=2, collate_fn=as_is))


def numbers_held(rank: int) -> dict[str, int]:
    task = built(LoRA(2), backbone=tiny("tiny_vit"))
    blocks = task.backbone.model.blocks
    whole = sum(p.numel() for p in blocks.parameters())
    train_one_step(task, precision="bf16-mixed")
    held = sum(p.to_local().numel() for p in blocks.parameters())
    sites = [module for module in blocks.modules() if isinstance(module, SiteLinear)]
    held += sum(copy.numel() for site in sites for _, copy in site.cast._kept.values())
    whole_trainables = all(type(p) is torch.nn.Parameter for p in task.trainables().values())
    return {"whole": whole, "held": held, "whole_trainables": whole_trainables}


def test_a_process_holds_half_of_the_frozen_blocks_after_a_step(tmp_path: Path) -> None:
    both = on_two_ranks(numbers_held, tmp_path)
    for seen in both:
        assert seen["whole_trainables"]
        assert seen["held"] < 0.55 * seen["whole"]  # shards of few rows are not quite equal
    assert sum(seen["held"] for seen in both) == both[0]["whole"]


def test_a_backbone_that_fits_whole_is_told_and_a_large_one_is_not() -> None:
    task = built(LoRA(2), backbone=tiny("tiny_vit"))
    whole = sum(p.numel() * p.element_size() for p in task.backbone.parameters())
    assert not_needed(task, int(1.9 * whole)) is None
    assert "trainer.strategy: ddp is faster" in str(not_needed(task, 2 * whole))


def refusal(rank: int) -> str:
    try:
        train_one_step(built(FullFineTune(), backbone=tiny("tiny_vit")))
    except ValueError as error:
        return str(error)
    return ""


def test_a_backbone_that_trains_is_refused(tmp_path: Path) -> None:
    for said in on_two_ranks(refusal, tmp_path):
        assert "whole backbone trains" in said
        assert "use trainer.strategy: ddp" in said


def test_fit_test_and_resume_give_what_ddp_gives(tmp_path: Path) -> None:
    strategies = {"ddp": "ddp", "sharded": {"class_path": "kora.sharding.ShardedBackbone"}}
    metrics = {}
    for name, strategy in strategies.items():
        folder = tmp_path / name
        folder.mkdir()
        config = tiny_config()
        config["trainer"] |= {"max_epochs": 1, "devices": 2, "strategy": strategy}
        write_config(folder / "tiny.yaml", config)
        resumed = ["--config", str(RUN / "config.yaml"), "--ckpt_path", "last"]
        commands = [
            ["fit", "--config", "tiny.yaml"],
            ["fit", *resumed, "--trainer.max_epochs", "2"],
            ["test", "--config", "tiny.yaml", "--ckpt_path", str(RUN / "checkpoints/best.ckpt")],
        ]
        for command in commands[: 2 if name == "ddp" else 3]:
            code, said = run(folder, *command)
            assert code == 0, said
        runs = [(folder / RUN).with_name(f"version_{number}") for number in (0, 1, 2)]
        metrics[name] = [results(run)["metrics"] for run in runs if run.is_dir()]
        saved = torch.load(runs[0] / "checkpoints/last.ckpt", weights_only=True)
        assert not any(key.startswith("backbone.") for key in saved["state_dict"])
    fitted, _, tested = metrics["sharded"]
    for one, other in [*zip(metrics["sharded"], metrics["ddp"], strict=False), (tested, fitted)]:
        assert one["test/accuracy"] == other["test/accuracy"]
        assert one["test/loss"] == pytest.approx(other["test/loss"], rel=1e-5)
