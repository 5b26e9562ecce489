"""Claims about all tasks alike: what a strategy, a run and a user may expect of any of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

import kora
from datamodules import Synthetic
from kora.adapters import KoRA, LinearProbe, LoRA, PaperForm, Strategy, Sum, TokenReadout
from kora.backbone.vit import Backbone
from kora.heads import FCOSHead, LinearSegmentation
from kora.reports.of_task import report_for
from kora.tasks import (
    AdapterTask,
    ClassificationTask,
    DepthTask,
    DetectionTask,
    SegmentationTask,
)
from tests.support.adapter_factory import write_folder
from tests.support.factory import kick, nano
from tests.support.tasks import trainer


@dataclass(frozen=True)
class Kind:
    """A task, what it is told besides a strategy, and the maps of its data."""

    task: type[AdapterTask]
    options: dict[str, Any]
    maps: list[Any]


KINDS = {
    "classification": Kind(ClassificationTask, {"num_classes": 12}, []),
    "depth": Kind(DepthTask, {"protocol": "full"}, ["depth_m"]),
    # Untrained detectors are not sure of anything: every box counts.
    "detection": Kind(
        DetectionTask, {"num_classes": 6, "protocol": {"score_threshold": 0.0}}, ["boxes"]
    ),
    "segmentation": Kind(SegmentationTask, {"num_classes": 4}, ["mask"]),
}
every_task = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def data_for(kind: Kind) -> Synthetic:
    return Synthetic(
        image_size=32, train_images=48, test_images=17, val_images=12, batch_size=12,
        eval_batch_size=5, maps=kind.maps, seed=0,
    )  # fmt: skip


def unbuilt(kind: Kind, adapter: Strategy, **options: Any) -> AdapterTask:
    seed_everything(2, verbose=False)
    if kind.task is DetectionTask:
        options = {"head": FCOSHead(channels=32), **options}
    return kind.task(nano(image_size=32), adapter, **kind.options, **options)


def forms(kind: Kind) -> list[Callable[[], Strategy]]:
    """A probe, one that is injected, and one that composes where the head sees it."""
    if kind.task is ClassificationTask:
        return [LinearProbe, lambda: LoRA(2), lambda: KoRA(PaperForm(2), composer=Sum())]

    def tokens() -> Strategy:
        return KoRA(PaperForm(2, pool="tokens"), composer=Sum(), readout=TokenReadout())

    return [LinearProbe, lambda: LoRA(2), tokens]


def frozen(task: AdapterTask) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(task.backbone.model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def values(task: AdapterTask) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in task.kept_tensors().items()}


@every_task
@pytest.mark.parametrize("form", range(3))
def test_a_fit_changes_adapter_and_head_and_leaves_the_backbone(
    kind: Kind, form: int, tmp_path: Path
) -> None:
    task = unbuilt(kind, forms(kind)[form]())
    fit = trainer(tmp_path, max_epochs=1, enable_checkpointing=False, limit_val_batches=0)
    task.build()
    before, weights = values(task), frozen(task)
    fit.fit(task, data_for(kind))
    assert frozen(task) == weights
    assert {name.partition(".")[0] for name in before} <= {"adapter", "head"}
    moved = {name for name, value in values(task).items() if not torch.equal(value, before[name])}
    assert moved >= set(task.trainables())


@every_task
def test_a_fit_that_was_cut_in_two_equals_one_that_was_not(kind: Kind, tmp_path: Path) -> None:
    def task() -> AdapterTask:
        plain = kind.task is SegmentationTask  # without numbers drawn for dropout
        return unbuilt(kind, LoRA(2), **({"head": LinearSegmentation(dropout=0)} if plain else {}))

    rest: dict[str, Any] = {"limit_val_batches": 0, "max_steps": 8}
    saving = ModelCheckpoint(tmp_path, filename="half", every_n_train_steps=4, save_top_k=-1)
    whole = task()
    trainer(tmp_path, **rest, callbacks=[saving]).fit(whole, data_for(kind))
    (half,) = (path for path in tmp_path.glob("half*.ckpt") if "-v" not in path.name)
    second = task()
    fit = trainer(tmp_path, **rest, enable_checkpointing=False)
    fit.fit(second, data_for(kind), ckpt_path=half)
    assert fit.global_step == 8
    for name, value in values(whole).items():
        assert torch.equal(values(second)[name], value), name


def side() -> Strategy:
    """A side network: of tokens, where it can be seen."""
    return KoRA(PaperForm(2, inject=False, pool="tokens"), readout=TokenReadout())


@pytest.mark.parametrize("strategy", [LinearProbe, side])
@every_task
def test_cached_features_give_the_result_of_the_images(
    kind: Kind, strategy: Callable[[], Strategy], tmp_path: Path
) -> None:
    found, metrics = [], []
    for cache in (True, False):
        task = unbuilt(
            kind, strategy(), feature_cache=cache, feature_cache_folder=str(tmp_path / "cache")
        )
        fit = trainer(tmp_path, max_epochs=2, enable_checkpointing=False)
        fit.fit(task, data_for(kind))
        assert bool(task.feature_cache.splits) == cache
        found.append(values(task))
        metrics.append(float(fit.callback_metrics[kind.task.monitor[0]]))
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-3)
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-3, atol=1e-4)


@every_task
def test_the_test_keeps_an_outcome_of_each_image_whatever_the_batches(
    kind: Kind, tmp_path: Path
) -> None:
    scores = []
    for size in (5, 17):
        task = unbuilt(kind, LoRA(2))
        data = data_for(kind)
        data.eval_batch_size = size
        fit = trainer(tmp_path, enable_checkpointing=False)
        scores.append(fit.test(task, data, verbose=False)[0])
        index = torch.cat([batch["index"] for batch in task.tested]).sort().values
        assert index.tolist() == list(range(17))
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


@every_task
@pytest.mark.parametrize("form", range(3))
def test_it_comes_back_from_its_folder_with_the_same_outputs(
    kind: Kind, form: int, tmp_path: Path, images: Tensor
) -> None:
    task = unbuilt(kind, forms(kind)[form]())
    task.backbone = Backbone("vit_nano", image_size=32)
    task.build()
    kick(task).eval()
    model = kora.load_adapter(write_folder(tmp_path / "adapter", task, class_names=[]))
    batch = {"image": images}
    with torch.no_grad():
        ours, theirs = task.predict_step(batch, 0), model.task.predict_step(batch, 0)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-5)


@every_task
def test_it_has_a_report_with_an_audit_pictures_and_baselines(kind: Kind, tmp_path: Path) -> None:
    task, data = unbuilt(kind, LoRA(2)), data_for(kind)
    data.setup()
    report = report_for(task, data)
    found = report.audit()
    assert found is not None
    found.check(allow_degenerate=False)
    trainer(tmp_path, enable_checkpointing=False).test(task, data, verbose=False)
    report.gather("test")
    assert found.baselines() or report.baselines()
    pictures = report.pictures(tmp_path)
    assert pictures
    assert all(path.stat().st_size > 10_000 for path in pictures)
    assert {"image"} < set(report.sample_rows()[0])
    assert report.evaluation("test") or kind.task is ClassificationTask
