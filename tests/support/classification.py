"""Labels of noise, and a trainer that only tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader


class Noise(LightningDataModule):
    """Noise with labels of K classes, in batches of 8, the last one smaller."""

    def __init__(self, num_classes: int = 9, size: int = 29) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.num_classes = num_classes
        self.images = torch.randint(0, 256, (size, 3, 8, 8), dtype=torch.uint8, generator=generator)
        # Uneven classes; the last class never occurs.
        self.labels = torch.randint(0, num_classes - 1, (size,), generator=generator) ** 2 % (
            num_classes - 1
        )

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        rows = [
            {"image": image, "label": label, "index": torch.tensor(100 + i)}
            for i, (image, label) in enumerate(zip(self.images, self.labels, strict=True))
        ]
        return DataLoader(rows, batch_size=8)

    train_dataloader = val_dataloader = predict_dataloader = test_dataloader


def trainer(folder: Path, **options: Any) -> Trainer:
    return Trainer(
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        accelerator="cpu",
        default_root_dir=folder,
        **options,
    )
