"""A tiny backbone, 40 training and 12 validation images, and the losses of every step of a fit."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback

from datamodules import Synthetic
from kora.adapters import Strategy
from kora.backbone.vit import Backbone
from kora.tasks import AdapterTask, ClassificationTask
from tests.support.families import tiny
from tests.support.two_ranks import QUIET

__all__ = ["SIZES", "Watch", "classifier", "fitted", "scenes", "values"]

SIZES: dict[str, Any] = {"train_images": 52, "test_images": 13, "val_images": 12, "batch_size": 9}


class Watch(Callback):
    """Losses and images of every training batch, what a batch holds, and passes of the backbone."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.images: list[list[int]] = []
        self.held: set[frozenset[str]] = set()
        self.passes = 0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        def count(*_: Any) -> None:
            self.passes += 1

        pl_module.backbone.model.register_forward_hook(count)
        pl_module.backbone.register_forward_hook(count)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, *args: Any
    ) -> None:
        self.losses.append(float(outputs["loss"]))
        self.images.append(batch["index"].tolist())
        self.held.add(frozenset(batch))


def scenes(**options: Any) -> Synthetic:
    return Synthetic(image_size=32, seed=0, **{**SIZES, **options})


def classifier(strategy: Strategy, backbone: Backbone | None = None, **options: Any) -> Any:
    torch.manual_seed(2)
    return ClassificationTask(backbone or tiny("tiny_vit"), strategy, **options)


def fitted(
    task: AdapterTask, data: Any = None, *, trainer: dict[str, Any] | None = None
) -> tuple[Watch, Trainer]:
    watch = Watch()
    options: dict[str, Any] = {**QUIET, "max_epochs": 2, **(trainer or {})}
    callbacks = [watch, *options.pop("callbacks", [])]
    made = Trainer(**options, callbacks=callbacks)
    torch.manual_seed(5)
    made.fit(task, datamodule=scenes() if data is None else data)
    return watch, made


def values(trainer: Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}
