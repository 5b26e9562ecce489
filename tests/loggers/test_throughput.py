"""Images a second are those of the work itself, by phase."""

from __future__ import annotations

import time
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader

from kora.loggers.throughput import Throughput

NAP_S = 0.02


class Sleeper(lightning.LightningModule):
    """Takes a known time a batch: one nap in training, four in validation, two in the test."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        time.sleep(NAP_S)
        return self.weight**2

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        time.sleep(4 * NAP_S)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        time.sleep(2 * NAP_S)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def loader(images: int) -> DataLoader[Any]:
    return DataLoader([{"image": torch.zeros(1)} for _ in range(images)], batch_size=5)


def test_training_is_measured_without_the_validation_in_it() -> None:
    speed = Throughput()
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[speed],
    )  # fmt: skip
    trainer.fit(Sleeper(), loader(25), loader(25))
    trainer.test(Sleeper(), loader(12), verbose=False)
    rates = speed.rates()
    most = {"train": 5 / NAP_S, "val": 5 / (4 * NAP_S), "test": 12 / (3 * 2 * NAP_S)}
    assert rates.keys() == most.keys()
    for phase, rate in rates.items():  # a busy machine is slower, and never faster
        assert rate <= most[phase]
    # With validation in it, training would be at a fifth at most.
    assert rates["train"] > most["train"] / 4


def test_what_did_not_run_has_no_rate() -> None:
    assert Throughput().rates() == {}
