"""What a batch draws is a function of seed, epoch, batch and process."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn

from kora.training.state import loop_state, seed_batch


def drawn(**changed: int) -> tuple[float, float, float]:
    numbers = {"seed": 1, "epoch": 2, "batch": 3, "rank": 0} | changed
    seed_batch(numbers.pop("seed"), **numbers, device=torch.device("cpu"))
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_the_same_batch_draws_the_same_and_every_other_something_else() -> None:
    first = drawn()
    assert drawn() == first
    for key in ("seed", "epoch", "batch", "rank"):
        assert not set(drawn(**{key: 7})) & set(first), key


def test_torch_draws_as_after_its_own_manual_seed() -> None:
    numbers = np.random.SeedSequence([1, 2, 3, 0]).generate_state(3)
    mine = drawn()[2]
    torch.manual_seed(int(numbers[2]))
    assert float(torch.rand(())) == mine


class Module(LightningModule):
    """One weight, trained and validated."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        """Some loss."""
        return (batch * self.weight).sum()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        """Nothing."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Both(Callback):
    """Takes both states at several places."""

    def __init__(self) -> None:
        self.pairs: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def _take(self, trainer: Trainer, *args: Any) -> None:
        self.pairs.append((loop_state(trainer.fit_loop), trainer.fit_loop.state_dict()))

    on_train_batch_start: Any = _take
    on_train_batch_end: Any = _take
    on_validation_batch_end: Any = _take
    on_train_epoch_end: Any = _take
    on_validation_end: Any = _take


def test_it_is_what_lightning_would_keep() -> None:
    both = Both()
    off: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar"), False
    )
    images: Any = [torch.ones(1)] * 6
    loader: Any = torch.utils.data.DataLoader(images)
    Trainer(
        max_epochs=2, accelerator="cpu", callbacks=[both], val_check_interval=3,
        accumulate_grad_batches=2, enable_model_summary=False, **off,
    ).fit(Module(), loader, loader)  # fmt: skip
    assert len(both.pairs) > 40
    for mine, theirs in both.pairs:
        assert mine == theirs
    assert len({str(mine) for mine, _ in both.pairs}) > 20, "it stays as it was when it was taken"
