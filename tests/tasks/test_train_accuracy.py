"""The accuracy of training is that of the batches as they came, once each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback

from kora.adapters import LinearProbe
from kora.tasks import ClassificationTask
from kora.tasks.train_accuracy import TrainAccuracy
from tests.support.classification import Noise, trainer
from tests.support.factory import built
from tests.support.two_ranks import QUIET, on_two_ranks


class Kept(Callback):
    """What was logged with each validation, and with each epoch."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.values.append(float(trainer.callback_metrics.get("train/accuracy", -1)))


def still(parameters: Any) -> torch.optim.Optimizer:
    """An optimiser that changes nothing, so that every batch sees the same weights."""
    return torch.optim.SGD(parameters, lr=0.0)


def expected(task: ClassificationTask, data: Noise) -> float:
    with torch.no_grad():
        return float((task(data.images).argmax(1) == data.labels).float().mean())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_is_the_mean_over_the_images_of_an_epoch(accumulate: int, tmp_path: Path) -> None:
    data, kept = Noise(), Kept()
    task = built(LinearProbe(), num_classes=9, optimizer=still)
    run = trainer(tmp_path, max_epochs=2, callbacks=[kept], accumulate_grad_batches=accumulate)
    run.fit(task, datamodule=data)
    assert kept.values[-2:] == pytest.approx([expected(task, data)] * 2)


def test_a_validation_that_stands_alone_has_none(tmp_path: Path) -> None:
    task = built(LinearProbe(), num_classes=9)
    (found,) = trainer(tmp_path).validate(task, datamodule=Noise(), verbose=False)
    assert "train/accuracy" not in found


def counts(right: int, images: int) -> torch.Tensor:
    return torch.tensor([right, images])


def test_a_batch_counts_with_its_optimiser_step_only() -> None:
    counted = TrainAccuracy()
    counted.add(counts(3, 4))
    counted.on_batch_end()  # gradients are accumulated
    assert counted.state() == [0, 0]
    counted.add(counts(1, 4))
    counted.on_step()
    counted.on_batch_end()
    counted.add(counts(4, 4))  # an error comes before its step
    assert counted.state() == [4, 8]


def test_a_resumed_count_is_the_uninterrupted_one() -> None:
    whole, first, second = TrainAccuracy(), TrainAccuracy(), TrainAccuracy()
    for counted, batches in ((whole, (1, 2, 3)), (first, (1, 2))):
        for right in batches:
            counted.add(counts(right, 4))
            counted.on_step()
            counted.on_batch_end()
    second.load(first.state())
    second.add(counts(3, 4))
    second.on_step()
    second.on_batch_end()
    assert second.read() == whole.read() == 0.5
    assert second.read() is None


def of_two(rank: int) -> list[float]:
    torch.manual_seed(0)
    task = built(LinearProbe(), num_classes=9, optimizer=still)
    kept = Kept()
    run = Trainer(**QUIET, max_epochs=1, devices=2, strategy="ddp", callbacks=[kept])
    data = Noise(size=28)  # as many for each process
    run.fit(task, datamodule=data)
    return [kept.values[-1], expected(task, data)]


@pytest.mark.slow
def test_two_processes_count_the_images_of_both(tmp_path: Path) -> None:
    for found, wanted in on_two_ranks(of_two, tmp_path):
        assert found == pytest.approx(wanted)
