"""A merged adapter gives the same results, and leaves no trace when it is taken out again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor
from torch.nn.functional import cross_entropy

from datamodules import Synthetic
from kora.adapters import SSF, DoRA, KoRA, LoRA, PaperForm, Strategy
from kora.backbone.rewrites import Rewritten
from kora.backbone.sites import SiteLinear
from kora.tasks import ClassificationTask
from kora.tasks.merging import Merged, MergedEvaluation, merged
from tests.support.factory import built, kick, nano
from tests.support.families import tiny
from tests.support.strategies import STRATEGIES
from tests.support.two_ranks import QUIET, on_two_ranks

MERGE = {"LoRA", "DoRA", "SSF"}


def kicked(name: str) -> ClassificationTask:
    return kick(built(STRATEGIES[name](), backbone=tiny("tiny_vit"))).eval()


def wrapped(task: ClassificationTask) -> list[torch.nn.Module]:
    return [m for m in task.backbone.modules() if isinstance(m, SiteLinear | Rewritten)]


@pytest.mark.parametrize("name", STRATEGIES)
@torch.no_grad()
def test_results_are_equal_to_1e_5_and_afterwards_to_the_bit(name: str, images: Tensor) -> None:
    task = kicked(name)
    before, layers = task(images), wrapped(task)
    state = {k: v.clone() for k, v in task.backbone.state_dict().items()}
    with merged(task.backbone, task.adapter) as folded:
        assert (folded.layers > 0) == (name in MERGE)
        if name in MERGE:
            assert wrapped(task) == []
        torch.testing.assert_close(task(images), before, rtol=1e-5, atol=1e-5)
    assert wrapped(task) == layers
    assert task.backbone.state_dict().keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in task.backbone.state_dict().items())
    assert torch.equal(task(images), before)


def test_what_is_merged_is_the_adapter_as_it_is_now(images: Tensor) -> None:
    task = kicked("LoRA")
    with torch.no_grad(), merged(task.backbone, task.adapter):
        first = task(images)
    kick(task, seed=9)
    with torch.no_grad(), merged(task.backbone, task.adapter):
        assert not torch.allclose(task(images), first, atol=1e-3)


def test_training_goes_on_after_it_as_if_it_had_not_been(images: Tensor) -> None:
    task, other = kicked("LoRA"), kicked("LoRA")
    with merged(task.backbone, task.adapter):
        pass
    for one in (task, other):
        one(images).sum().backward()
    for name, parameter in other.trainables().items():
        assert parameter.grad is not None
        assert parameter.grad.any(), name
        assert torch.equal(task.trainables()[name].grad, parameter.grad), name


def test_an_error_within_it_leaves_the_wrapped_layers(images: Tensor) -> None:
    task = kicked("LoRA")
    layers = wrapped(task)
    with pytest.raises(ZeroDivisionError), merged(task.backbone, task.adapter):
        _ = 1 / 0
    assert wrapped(task) == layers


def test_half_precision_is_not_merged_as_small_updates_would_vanish() -> None:
    task = kicked("LoRA")
    with torch.autocast("cpu", torch.bfloat16):
        assert Merged(task.backbone, task.adapter).layers == 0
    torch.set_float32_matmul_precision("medium")  # also on processors that know it
    try:
        assert Merged(task.backbone, task.adapter).layers == 0
    finally:
        torch.set_float32_matmul_precision("highest")
    task.bfloat16()
    assert Merged(task.backbone, task.adapter).layers == 0


# -- within the trainer ------------------------------------------------------------------------


class Watching(ClassificationTask):
    """Notes how many layers are wrapped whenever it is looked at."""

    def seen(self) -> set[int]:
        found: set[int] = getattr(self, "_seen", set())
        return found

    def forward(self, images: Tensor) -> Tensor:
        number = len([m for m in self.backbone.modules() if isinstance(m, SiteLinear | Rewritten)])
        self._seen = self.seen() | {number}
        return super().forward(images)


def data() -> Synthetic:
    return Synthetic(image_size=32, train_images=40, test_images=17, val_images=13, batch_size=4)


def watching(adapter: Strategy, **options: Any) -> Watching:
    torch.manual_seed(2)
    return Watching(nano(image_size=32), adapter, **options)


@pytest.mark.parametrize(
    "adapter", [LoRA(2), DoRA(2), SSF(), KoRA(PaperForm(2), 2)], ids=lambda a: a.label
)
def test_test_and_predict_run_merged_and_say_what_they_said_unmerged(
    adapter: Strategy, tmp_path: Path
) -> None:
    task = watching(adapter)
    trainer = Trainer(max_epochs=1, limit_train_batches=3, default_root_dir=tmp_path, **QUIET)
    trainer.fit(task, datamodule=data())
    kick(task)
    layers = wrapped(task)
    task._seen = set()
    trainer.test(task, datamodule=data(), verbose=False)
    said = {k: float(v) for k, v in trainer.callback_metrics.items()}
    predicted = trainer.predict(task, datamodule=data())
    assert task.seen() == {len(layers) if adapter.label == "KoRA" else 0}
    assert wrapped(task) == layers
    assert sum(isinstance(c, MergedEvaluation) for c in trainer.callbacks) == 1
    right, losses = [], []
    with torch.inference_mode():
        for ours, batch in zip(predicted, data_batches(), strict=True):
            logits = task(batch["image"])
            probabilities = logits.softmax(-1).max(-1)
            assert torch.equal(ours["prediction"], probabilities.indices)
            torch.testing.assert_close(ours["confidence"], probabilities.values)
            right.append(probabilities.indices == batch["label"])
            losses.append(cross_entropy(logits, batch["label"], reduction="none"))
    assert said["test/accuracy"] == pytest.approx(float(torch.cat(right).float().mean()))
    assert said["test/loss"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)


def data_batches() -> Any:
    module = data()
    module.setup("test")
    return module.test_dataloader()


def test_an_error_in_a_test_leaves_the_wrapped_layers(tmp_path: Path) -> None:
    task = watching(LoRA(2))
    trainer = Trainer(max_epochs=1, limit_train_batches=1, default_root_dir=tmp_path, **QUIET)
    trainer.fit(task, datamodule=data())
    layers = wrapped(task)

    def broken(batch: Any, batch_idx: int) -> None:
        assert wrapped(task) == []
        raise ZeroDivisionError

    task.test_step = broken
    with pytest.raises(ZeroDivisionError):
        trainer.test(task, datamodule=data(), verbose=False)
    assert wrapped(task) == layers


@pytest.mark.parametrize("options", [{"precision": "bf16-mixed"}, {"precision": "bf16-true"}])
def test_in_half_precision_the_trainer_does_not_merge(
    options: dict[str, Any], tmp_path: Path
) -> None:
    task = watching(LoRA(2))
    trainer = Trainer(max_epochs=1, limit_train_batches=1, default_root_dir=tmp_path,
                      **QUIET, **options)  # fmt: skip
    trainer.fit(task, datamodule=data())
    trainer.test(task, datamodule=data(), verbose=False)
    assert task.seen() == {24}


def merged_on(rank: int) -> dict[str, Any]:
    """What two processes saw in a test, with and without shards."""
    found = {}
    for strategy in ("ddp", "kora.sharding.ShardedBackbone"):
        made: Any = strategy
        if strategy != "ddp":
            from kora.backbone.sharding import ShardedBackbone

            made = ShardedBackbone(process_group_backend="gloo")
        task = watching(LoRA(2))
        trainer = Trainer(max_epochs=1, limit_train_batches=1, devices=2, strategy=made, **QUIET)
        trainer.fit(task, datamodule=data())
        task._seen = set()
        trainer.test(task, datamodule=data(), verbose=False)
        found[strategy] = sorted(task.seen())
    return found


@pytest.mark.slow
def test_every_process_merges_unless_the_weights_are_in_shards(tmp_path: Path) -> None:
    for found in on_two_ranks(merged_on, tmp_path):
        assert found == {"ddp": [0], "kora.sharding.ShardedBackbone": [24]}
