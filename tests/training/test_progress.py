"""Claims about what stands beside the bar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from kora.training import progress
from kora.training.progress import ProgressBar
from tests.support.tasks import Colours, trainer, unbuilt


class Reads(ProgressBar):
    """Counts how often Lightning asks, and keeps what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[dict[str, Any]] = []

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        found = super().get_metrics(trainer, pl_module)
        self.told.append(dict(found))
        return found


class Losses(Callback):
    """The loss after each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.seen.append(float(trainer.callback_metrics["train/loss"]))


@pytest.mark.parametrize(("every_s", "steps_read"), [(0.0, [0, 1, 2]), (1000.0, [0, 2])])
def test_metrics_are_read_now_and_then_and_after_the_last_step(
    every_s: float, steps_read: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_READ_EVERY_S", every_s)
    bar, losses = Reads(), Losses()
    fit = trainer(
        tmp_path, max_epochs=1, enable_checkpointing=False, enable_progress_bar=True,
        num_sanity_val_steps=0, callbacks=[losses, bar],
    )  # fmt: skip
    fit.fit(unbuilt(), datamodule=Colours())
    told = [row["train/loss"] for row in bar.told if "train/loss" in row]
    assert list(dict.fromkeys(told)) == pytest.approx([losses.seen[k] for k in steps_read])
    assert all("v_num" not in row for row in bar.told)
    assert "val/accuracy" in bar.told[-1]


@pytest.mark.parametrize(("epochs", "shown"), [(2, "Epoch 1/2"), (-1, "Epoch 1 ")])
def test_the_bar_names_the_last_epoch_only_where_there_is_one(
    epochs: int, shown: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fit = trainer(
        tmp_path, max_epochs=epochs, max_steps=1, enable_checkpointing=False,
        enable_progress_bar=True, num_sanity_val_steps=0, callbacks=[ProgressBar()],
    )  # fmt: skip
    fit.fit(unbuilt(), datamodule=Colours())
    assert shown in capfd.readouterr().out
