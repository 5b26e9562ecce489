"""Adapter folders of built tasks, and backbones whose random weights lie in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from datamodules.recipe import ImageRecipe
from kora.adapters import Strategy
from kora.adapters.folder import save_adapter
from kora.backbone.vit import Backbone
from kora.runs.adapter_config import ADAPTER_CONFIG
from kora.tasks import AdapterTask, ClassificationTask
from kora.tasks.adapter_record import preprocessing, task_record
from tests.support.factory import built, kick
from tests.support.families import TINY, tiny

__all__ = ["CLASSES", "edit_record", "kicked", "tiny_in_file", "write_fitted", "write_folder"]

CLASSES = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu"]


def tiny_in_file(name: str, folder: Path) -> Backbone:
    """A tiny backbone of a family that was loaded from a file, which can be loaded again."""
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        save_file(tiny(name).model.state_dict(), path)
    return Backbone(name, weights=str(path), image_size=TINY[name][1])


def kicked(adapter: Strategy | None, backbone: Backbone | None = None) -> ClassificationTask:
    """A task of seven classes on the weights of `vit_nano`, away from its start, in eval mode."""
    task = kick(built(adapter, backbone=Backbone("vit_nano") if backbone is None else backbone))
    return task.eval()


def write_folder(folder: Path, task: AdapterTask, **extra: Any) -> Path:
    """The adapter folder of a task, as a run writes it."""
    return save_adapter(
        folder,
        task.kept_tensors(),
        adapter=task.adapter,
        backbone=task.backbone,
        extra={**task_record(task), "class_names": CLASSES, "metrics": {}, **extra},
    )


def write_fitted(folder: Path, task: AdapterTask, recipe: ImageRecipe) -> Path:
    """The adapter folder of a run whose data module had this recipe."""
    return write_folder(folder, task, preprocessing=preprocessing(task.backbone, recipe))


def edit_record(folder: str | Path, **changes: Any) -> None:
    """Change the record of an adapter folder as someone would who means it; None deletes a key."""
    path = Path(folder) / ADAPTER_CONFIG
    record = json.loads(path.read_text(encoding="utf-8")) | changes | {"record_sha256": None}
    kept = {key: value for key, value in record.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")
