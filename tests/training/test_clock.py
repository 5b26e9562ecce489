"""Seconds and images are those of the work itself, by phase."""

from __future__ import annotations

import time
from typing import Any

import lightning
import pytest
import torch
from torch.utils.data import DataLoader

from kora.training.clock import RunClock

NAP_S = 0.02
PICTURE_S = 0.2


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


class Painter(lightning.Callback):
    """Draws a picture of every validation, which takes its time."""

    def on_validation_end(self, *args: Any) -> None:
        time.sleep(PICTURE_S)


def loader(images: int) -> DataLoader[Any]:
    return DataLoader([{"image": torch.zeros(1)} for _ in range(images)], batch_size=5)


def trainer(clock: RunClock, **options: Any) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[clock, Painter()], **options,
    )  # fmt: skip


@pytest.mark.parametrize("within", [1.0, 0.5])
def test_training_is_measured_without_the_validation_in_it(within: float) -> None:
    clock = RunClock()
    run = trainer(clock, max_epochs=1, val_check_interval=within)
    run.fit(Sleeper(), loader(30), loader(25))
    run.test(Sleeper(), loader(12), verbose=False)
    validations = 1 if within == 1 else 2
    assert clock.images == {"train": 30, "val": validations * 25, "test": 12}
    rates = clock.rates()
    most = {"train": 5 / NAP_S, "val": 5 / (4 * NAP_S), "test": 12 / (3 * 2 * NAP_S)}
    assert rates.keys() == most.keys()
    for phase, rate in rates.items():  # a busy machine is slower, and never faster
        assert rate <= most[phase]
    # With a validation or a picture in it, training would be at a third at most.
    assert rates["train"] > most["train"] / 2.5


def test_the_seconds_of_a_fit_are_with_all_that_is_in_it_and_with_those_before_a_resume() -> None:
    clock = RunClock()
    clock.load_state_dict({"fit_seconds": 1000.0})
    run = trainer(clock, max_epochs=1)
    began = time.perf_counter()
    run.fit(Sleeper(), loader(10), loader(5))
    took = time.perf_counter() - began
    least = 2 * NAP_S + 4 * NAP_S + PICTURE_S
    assert clock.seconds().keys() == {"fit"}
    assert 1000 + least <= clock.seconds()["fit"] <= 1000 + took
    assert clock.state_dict() == {"fit_seconds": clock.seconds()["fit"]}
    fit_s = clock.seconds()["fit"]
    clock.load_state_dict({"fit_seconds": 500.0})  # of the best checkpoint, which is tested
    run.test(Sleeper(), loader(10), verbose=False)
    assert 2 * 2 * NAP_S <= clock.seconds()["test"] < took
    assert clock.seconds()["fit"] == fit_s


def test_a_checkpoint_has_the_seconds_up_to_it() -> None:
    clock = RunClock()
    clock.on_train_start(trainer(clock), Sleeper())
    first = clock.state_dict()["fit_seconds"]
    time.sleep(NAP_S)
    assert clock.state_dict()["fit_seconds"] >= first + NAP_S


def test_what_did_not_run_has_no_rate_and_no_seconds() -> None:
    assert RunClock().rates() == {}
    assert RunClock().seconds() == {}
    clock = RunClock()
    trainer(clock).validate(Sleeper(), loader(10), verbose=False)
    assert clock.rates().keys() == {"val"}
    assert clock.seconds() == {}
