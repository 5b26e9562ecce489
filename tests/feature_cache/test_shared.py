"""Several tasks on the same images train from one pass of the frozen backbone."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import seed_everything

from datamodules import Synthetic
from kora.adapters import KoRA, LinearProbe, PaperForm, Strategy
from kora.backbone.vit import Backbone
from kora.heads import FCOSHead, LinearDepth, LinearSegmentation
from kora.tasks import AdapterTask, ClassificationTask, DepthTask, DetectionTask, SegmentationTask
from tests.support.faults import flip
from tests.support.tasks import trainer

pytestmark = pytest.mark.runs


def tasks(backbone: Backbone, folder: Path) -> dict[str, Any]:
    """Segmentation reads four levels; depth and detection the last one."""
    options: dict[str, Any] = {"feature_cache": True, "feature_cache_folder": str(folder)}
    probe = LinearProbe()
    return {
        "segmentation": lambda: SegmentationTask(
            backbone, probe, head=LinearSegmentation(levels=4, dropout=0), **options
        ),
        "depth": lambda: DepthTask(
            backbone, probe, head=LinearDepth(cls=False), protocol="full", **options
        ),
        "detection": lambda: DetectionTask(backbone, probe, head=FCOSHead(channels=32), **options),
    }


def fitted(make: Any, tmp_path: Path) -> AdapterTask:
    seed_everything(2, verbose=False)
    data = Synthetic(
        image_size=32, train_images=24, test_images=12, val_images=12, batch_size=12,
        maps=["mask", "depth_m", "boxes"], seed=0,
    )  # fmt: skip
    task: AdapterTask = make()
    trainer(tmp_path, max_epochs=1, enable_checkpointing=False).fit(task, data)
    return task


def backbone() -> Backbone:
    return Backbone("vit_nano", image_size=32)


def computed(task: AdapterTask) -> int:
    record = task.feature_cache.record()
    assert record is not None
    return int(record["images_computed"])


def test_three_tasks_need_one_pass_and_train_as_if_alone(tmp_path: Path) -> None:
    together = tasks(backbone(), tmp_path / "one")
    found = {name: fitted(make, tmp_path) for name, make in together.items()}
    assert {name: computed(task) for name, task in found.items()} == {
        "segmentation": 24, "depth": 0, "detection": 0,
    }  # fmt: skip
    for name, task in found.items():
        alone = fitted(tasks(backbone(), tmp_path / name)[name], tmp_path)
        assert computed(alone) == 24
        for key, value in task.kept_tensors().items():
            torch.testing.assert_close(alone.kept_tensors()[key], value, rtol=1e-4, atol=1e-6)


def test_a_level_that_nobody_kept_is_computed(tmp_path: Path) -> None:
    made = tasks(backbone(), tmp_path / "one")
    assert computed(fitted(made["detection"], tmp_path)) == 24
    assert computed(fitted(made["segmentation"], tmp_path)) == 24


def test_a_damaged_table_serves_nobody_else(tmp_path: Path) -> None:
    made = tasks(backbone(), tmp_path / "one")
    fitted(made["segmentation"], tmp_path)
    for file in (tmp_path / "one").glob("*/features.npy"):
        flip(file, 0.9)
    assert computed(fitted(made["detection"], tmp_path)) == 24


def test_a_probe_takes_what_a_side_network_kept_and_not_the_reverse(tmp_path: Path) -> None:
    counts = []
    for first, second in ((side(), LinearProbe()), (LinearProbe(), side())):
        options: dict[str, Any] = {
            "feature_cache": True, "feature_cache_folder": str(tmp_path / first.label),
        }  # fmt: skip
        for strategy in (first, second):
            task = fitted(partial(ClassificationTask, backbone(), strategy, **options), tmp_path)
            counts.append(computed(task))
    assert counts == [24, 0, 24, 24]


def side() -> Strategy:
    return KoRA(PaperForm(2, inject=False))
