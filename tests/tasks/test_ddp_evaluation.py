"""Metrics on two processes are those of one, also where the last batch is uneven.

Lightning's own sampler would repeat images until both processes have as many.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer

from datamodules import Synthetic
from kora.adapters import LoRA
from kora.analysis.average_precision import mean_ap
from kora.analysis.pooled import mean_iou
from kora.heads import FCOSHead, LinearDepth, QuerySegmentation
from kora.runs.outcomes import Outcomes, read_outcomes
from kora.tasks import (
    AdapterTask,
    ClassificationTask,
    DepthTask,
    DetectionTask,
    SegmentationTask,
)
from kora.training.record import OutcomeRecord
from tests.support.factory import nano
from tests.support.two_ranks import QUIET, on_two_ranks

pytestmark = pytest.mark.slow
TRAINER: dict[str, Any] = {**QUIET, "max_epochs": 1, "limit_train_batches": 1}
#: 17 test images in batches of 4 give one process 4 + 4 + 1 images and the other 4 + 3 + 1.
SIZES: dict[str, Any] = {"train_images": 40, "test_images": 17, "val_images": 13}
MEANS = {
    "classification": "test/accuracy",
    "depth": "test/rmse_m",
    "segmentation": "test/miou",
    "detection": "test/map",
}


def still(parameters: Any) -> torch.optim.Optimizer:
    """An optimiser that changes nothing, so that validation sees the weights of the start."""
    return torch.optim.SGD(parameters, lr=0.0)


def task(kind: str) -> AdapterTask:
    torch.manual_seed(2)
    options: dict[str, Any] = {"optimizer": still}
    if kind == "classification":
        return ClassificationTask(nano(image_size=32), LoRA(2), **options)
    if kind == "segmentation":
        # Without the batch normalisation of the linear head, whose means are those of a process.
        head = QuerySegmentation(width=16, heads=2)
        return SegmentationTask(nano(image_size=32), LoRA(2), head=head, **options)
    if kind == "detection":
        every = {"score_threshold": 0.0}  # an untrained detector is not sure of anything
        head = FCOSHead(channels=32)
        return DetectionTask(nano(image_size=32), LoRA(2), head=head, protocol=every, **options)
    return DepthTask(nano(image_size=32), LoRA(2), head=LinearDepth(), protocol="full", **options)


def from_outcomes(outcomes: Outcomes, metric: str) -> float:
    """The metric, computed from what is kept of each image."""
    if outcomes.areas is not None:
        return float(mean_iou(outcomes.areas.sum(0)))
    if outcomes.boxes is not None:
        return float(mean_ap([outcomes.boxes])(np.ones((1, len(outcomes.boxes))))[0])
    return float(np.mean(outcomes.values(metric)))


def scores(kind: str, **devices: Any) -> dict[str, float]:
    """All that validation within a fit, and then a test, told."""
    maps: list[Any] = {
        "depth": ["depth_m"], "segmentation": ["mask"], "detection": ["boxes"],
    }.get(kind, [])  # fmt: skip
    data = Synthetic(image_size=32, batch_size=4, maps=maps, seed=0, **SIZES)
    torch.manual_seed(5)
    folder = Path(tempfile.mkdtemp())
    trainer = Trainer(**TRAINER, **devices, callbacks=[OutcomeRecord(folder)])
    model = task(kind)
    trainer.fit(model, datamodule=data)
    found = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
    trainer.test(model, datamodule=data, verbose=False)
    found |= {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("test/")}
    if isinstance(model, ClassificationTask):
        found["confusion"] = float(model.test_confusion.compute().sum())
    outcomes = read_outcomes(folder)  # on the first process only
    if outcomes is not None:
        found["outcomes"] = from_outcomes(outcomes, MEANS[kind])
        found["images"] = float((outcomes.index == np.arange(17)).sum())
    return found


def scores_of_two(rank: int) -> dict[str, dict[str, float]]:
    return {kind: scores(kind, devices=2, strategy="ddp") for kind in MEANS}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, float]]]:
    return on_two_ranks(scores_of_two, tmp_path_factory.mktemp("ddp"))


@pytest.mark.parametrize("kind", MEANS)
def test_uneven_last_batches_change_no_metric(
    kind: str, both: list[dict[str, dict[str, float]]]
) -> None:
    alone = scores(kind, devices=1)
    assert {MEANS[kind], MEANS[kind].replace("test", "val")} <= alone.keys()
    assert both[0][kind] == pytest.approx(alone, rel=1e-5)
    assert both[1][kind].items() <= both[0][kind].items(), "the first one alone writes outcomes"


def test_the_confusion_matrix_holds_each_image_once(
    both: list[dict[str, dict[str, float]]],
) -> None:
    assert [found["classification"]["confusion"] for found in both] == [17, 17]


@pytest.mark.parametrize("kind", MEANS)
def test_the_outcomes_hold_each_image_of_both_once_in_order(
    kind: str, both: list[dict[str, dict[str, float]]]
) -> None:
    found = both[0][kind]
    assert found["images"] == 17
    assert found["outcomes"] == pytest.approx(found[MEANS[kind]], rel=1e-6)
    assert "outcomes" not in both[1][kind]
