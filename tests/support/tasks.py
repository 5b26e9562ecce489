"""A task of a few steps, its data and its trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule, Trainer, seed_everything
from torch import Tensor
from torch.utils.data import DataLoader

from kora.adapters import LoRA, Strategy
from kora.tasks import ClassificationTask
from tests.support.factory import nano


class Colours(LightningDataModule):
    """12 images in 7 classes; the class is the brightness."""

    num_classes = 7

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        rows: list[dict[str, Tensor]] = [
            {
                "image": torch.full((3, 8, 8), 30 * (i % 7), dtype=torch.uint8),
                "label": torch.tensor(i % 7),
                "index": torch.tensor(i),
            }
            for i in range(12)
        ]
        return DataLoader(rows, batch_size=4)

    val_dataloader = test_dataloader = train_dataloader


def trainer(folder: Path, **options: Any) -> Trainer:
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "default_root_dir": folder,
    }
    return Trainer(**(quiet | options))


def unbuilt(adapter: Strategy | None = None, **options: Any) -> ClassificationTask:
    seed_everything(2, verbose=False)
    backbone = options.pop("backbone", None)
    return ClassificationTask(
        backbone or nano(), LoRA(2) if adapter is None else adapter, **options
    )
