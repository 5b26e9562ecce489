"""Strategies that shard the model are refused before anything is trained."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from datamodules import Synthetic
from kora.adapters import LoRA
from kora.tasks import ClassificationTask
from kora.tasks.ranks import in_one_list
from tests.support.factory import nano


@pytest.fixture
def _nothing_left() -> Iterator[None]:
    """Neither a process group nor LOCAL_RANK and the like, by which others would wait for ranks."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_nothing_left")
def test_sharding_is_refused_with_what_to_use_instead(tmp_path: Path) -> None:
    strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)
    trainer = Trainer(
        accelerator="cpu", devices=1, strategy=strategy, default_root_dir=tmp_path, logger=False,
        enable_checkpointing=False, enable_progress_bar=False,
    )  # fmt: skip
    data = Synthetic(image_size=32, train_images=24, test_images=12, val_images=12)
    with pytest.raises(ValueError, match=r"ModelParallelStrategy.*Use trainer\.strategy: ddp"):
        trainer.fit(ClassificationTask(nano(), LoRA(2)), datamodule=data)


def test_one_process_keeps_its_predictions_as_they_are() -> None:
    batches = [{"index": torch.tensor([3, 1])}]
    assert in_one_list(batches) == batches
