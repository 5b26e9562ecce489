"""With ShardedBackbone each process holds a part of the frozen blocks, and all of what trains.

That its gradients are those of one process is in tests/adapters/test_ddp.py.
"""

from __future__ import annotations

import ctypes
import re
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from datamodules.loading import ArrayDataset, as_is
from kora.adapters import BitFit, DoRA, FullFineTune, LoRA, Strategy
from kora.backbone.sharding import ShardedBackbone, not_needed
from kora.backbone.sites import SiteLinear
from kora.backbone.vit import Backbone
from kora.backbone.weights import matrices_on_disk
from kora.tasks import ClassificationTask
from tests.support.armed import run
from tests.support.cli import results, tiny_config, write_config
from tests.support.factory import built, labels_for
from tests.support.families import TINY, register_narrow, tiny
from tests.support.two_ranks import QUIET, on_two_ranks

pytestmark = pytest.mark.slow
register_narrow("tall_vit", "vit_tiny_patch16_224", embed_dim=384, num_heads=6, depth=20)
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


class Watched(threading.Thread):
    """The most memory of its own that this process had while it ran, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        ctypes.CDLL(None).malloc_trim(0)  # else it would use again what others have freed
        self.start_bytes = self.most_bytes = self.now()

    @staticmethod
    def now() -> int:
        text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
        return 1024 * int(re.findall(r"Anonymous: +([0-9]+) kB", text)[0])

    def run(self) -> None:
        while not self.over.wait(0.03):
            self.most_bytes = max(self.most_bytes, self.now())


def memory_of_a_tall_one(rank: int) -> dict[str, int]:
    watched = Watched()
    watched.start()
    with matrices_on_disk():
        backbone = Backbone("tall_vit", weights="tall.safetensors", image_size=32)
        task = built(LoRA(2), backbone=backbone)
    train_one_step(task, precision="bf16-mixed")
    watched.over.set()
    watched.join()
    matrices = [m.weight for m in backbone.model.blocks.modules() if type(m) is torch.nn.Linear]
    return {
        "own": watched.most_bytes - watched.start_bytes,
        "whole": sum(4 * p.numel() for p in backbone.parameters()),
        "matrices": len(matrices),
        "in bfloat16": sum(m.dtype == torch.bfloat16 for m in matrices),
    }


def test_of_a_tall_backbone_no_process_ever_holds_much_more_than_its_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_module("torch._dynamo")  # else its import is part of the memory that is measured
    monkeypatch.chdir(tmp_path)
    drawn = Backbone("tall_vit", weights="random", image_size=32)
    save_file({k: v.half() for k, v in drawn.model.state_dict().items()}, "tall.safetensors")
    for seen in on_two_ranks(memory_of_a_tall_one, tmp_path):
        assert seen["whole"] > 140e6
        assert seen["matrices"] == seen["in bfloat16"] == 4 * 20
        # A quarter are its shards in bfloat16. Blocks that compute and buffers of libraries take as
        # much here; a process that builds or loads the whole takes more than all of it.
        assert seen["own"] < 0.85 * seen["whole"]


def losses_of(make: Strategy, name: str, *, sharded: bool) -> list[float]:
    torch.manual_seed(0)
    weights = f"{name}.safetensors"
    task = built(make, backbone=Backbone(name, weights=weights, image_size=TINY[name][1]))
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    data = ArrayDataset({"image": images, "label": labels_for(images)})
    strategy = ShardedBackbone() if sharded else "ddp"
    trainer = Trainer(strategy=strategy, devices=2, max_steps=3, precision="bf16-mixed", **QUIET)
    losses: list[float] = []
    step = task.training_step

    def noted(*args: Any) -> Any:
        out = step(*args)
        losses.append(float(out if isinstance(out, torch.Tensor) else out["loss"]))
        return out

    task.training_step = noted
    trainer.fit(task, DataLoader(data, batch_size=2, collate_fn=as_is))
    return losses


CASES = [(LoRA, "tiny_vit"), (DoRA, "tiny_vit"), (BitFit, "tiny_beit"), (LoRA, "tiny_dinov3")]


def both_ways(rank: int) -> list[list[float]]:
    found = []
    for kind, name in CASES:
        with matrices_on_disk():
            found.append(losses_of(kind(), name, sharded=True))
        found.append(losses_of(kind(), name, sharded=False))
    return found


def test_a_backbone_left_on_disk_trains_in_bfloat16_as_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _, name in CASES:
        state = tiny(name).model.state_dict()
        save_file({k: v.half() for k, v in state.items()}, f"{name}.safetensors")
    for seen in on_two_ranks(both_ways, tmp_path):
        for sharded, whole in zip(seen[::2], seen[1::2], strict=True):
            assert len(sharded) == 3
            assert sharded == whole


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
