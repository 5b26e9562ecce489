"""Every strategy on two processes trains by the gradients that one process has.

Plain `ddp`, which looks for no unused parameter: one of them would stop it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.loading import ArrayDataset, as_is
from kora.backbone.sharding import ShardedBackbone
from kora.tasks import ClassificationTask
from tests.support.adapters import gradients, loss_of
from tests.support.factory import built, kick, labels_for
from tests.support.families import tiny
from tests.support.strategies import STRATEGIES
from tests.support.two_ranks import QUIET, on_two_ranks

pytestmark = pytest.mark.slow

Ranks = list[dict[str, dict[str, Tensor]]]
#: One of each class whose backbone is frozen, so that it can be sharded.
SHARDED = sorted(
    {entry.kind: name for name, entry in STRATEGIES.items() if name != "FullFineTune"}.values()
)


def global_batch() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=generator)


def fresh(name: str) -> ClassificationTask:
    return kick(built(STRATEGIES[name](), backbone=tiny("tiny_vit")))


class Gradients(Callback):
    """Those that the optimiser is about to use, and the loss that is logged."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}
        self.loss = torch.zeros(())

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        mine = pl_module.trainables().items()
        self.found = {name: p.grad.clone() for name, p in mine if p.grad is not None}

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.loss = trainer.callback_metrics["train/loss"].clone()


def gradients_by_strategy(rank: int) -> dict[str, dict[str, Tensor]]:
    return gradients_under(lambda: "ddp", STRATEGIES)


def gradients_with_shards(rank: int) -> dict[str, dict[str, Tensor]]:
    return gradients_under(ShardedBackbone, SHARDED)


def gradients_under(
    strategy: Callable[[], Any], names: Iterable[str]
) -> dict[str, dict[str, Tensor]]:
    images = global_batch()
    data = ArrayDataset({"image": images, "label": labels_for(images)})
    found = {}
    for name in names:
        seen = Gradients()
        trainer = Trainer(strategy=strategy(), devices=2, max_steps=1, callbacks=[seen], **QUIET)
        # Three of the six images for each process.
        trainer.fit(fresh(name), DataLoader(data, batch_size=3, collate_fn=as_is))
        found[name] = {**seen.found, "loss": seen.loss}
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return on_two_ranks(gradients_by_strategy, tmp_path_factory.mktemp("ddp"))


@pytest.fixture(scope="module")
def both_with_shards(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return on_two_ranks(gradients_with_shards, tmp_path_factory.mktemp("sharded"))


def check_against_one_process(name: str, both: Ranks) -> None:
    task = fresh(name).train()
    _, alone = gradients(task, global_batch())
    alone["loss"] = loss_of(task, global_batch()).detach()  # the logged one is of both as well
    for rank in (0, 1):
        assert both[rank][name].keys() == alone.keys()
        for key, gradient in alone.items():
            torch.testing.assert_close(both[rank][name][key], gradient, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(both[0][name][key], both[1][name][key]) for key in alone)


@pytest.mark.parametrize("name", STRATEGIES)
def test_two_processes_have_the_gradients_of_one_on_the_same_global_batch(
    name: str, both: Ranks
) -> None:
    check_against_one_process(name, both)


@pytest.mark.parametrize("name", SHARDED)
def test_so_they_have_with_the_backbone_in_shards(name: str, both_with_shards: Ranks) -> None:
    check_against_one_process(name, both_with_shards)
