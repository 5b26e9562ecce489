"""A gradient that is not finite stops the run, and the look at finite ones changes nothing."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import nn

from kora.training.guards import FiniteGuard


class Weights(LightningModule):
    """Two weights of two dtypes, and one that the loss does not reach."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor
        self.near = nn.Parameter(torch.tensor([1e-45, 2.0, -0.0]))
        self.far = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
        self.idle = nn.Parameter(torch.ones(1))
        self.seen: list[torch.Tensor] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        """A loss whose gradients are known."""
        return (self.near * torch.tensor([3e-39, 1.0, 1.0])).sum() + (self.far * self.factor).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain."""
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """After the callbacks."""
        self.seen = [cast("torch.Tensor", p.grad).clone() for p in (self.near, self.far)]


def fit(module: Weights) -> None:
    off: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar"), False
    )
    trainer = Trainer(
        max_steps=1, accelerator="cpu", callbacks=[FiniteGuard()], enable_model_summary=False, **off
    )
    trainer.fit(module, torch.utils.data.DataLoader(cast("Any", [torch.zeros(1)])))


def test_finite_gradients_stay_as_they_are_to_the_last_bit() -> None:
    module = Weights()
    fit(module)
    near, far = module.seen
    assert near.tolist() == torch.tensor([3e-39, 1.0, 1.0]).tolist()  # the first is denormal
    assert far.tolist() == [1.0, 1.0]
    assert module.near[1].item() == pytest.approx(1.9)


@pytest.mark.parametrize("factor", [float("inf"), float("-inf")])
def test_a_gradient_that_is_not_finite_stops_before_the_step(factor: float) -> None:
    module = Weights(factor)
    before = module.near.detach().clone()
    with pytest.raises(RuntimeError, match=r"the loss is -?inf in epoch 0, batch 0"):
        fit(module)
    assert torch.equal(module.near, before)


def test_a_gradient_alone_that_is_not_finite_stops_too() -> None:
    module = Weights()
    module.far.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(RuntimeError, match=r"a gradient is not finite in epoch 0, batch 0"):
        fit(module)
    assert module.far.tolist() == [1.0, 1.0]
