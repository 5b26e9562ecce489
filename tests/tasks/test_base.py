"""Claims about what every task shares: what trains, the optimiser, checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from kora.adapters import FullFineTune, KoRA, LinearProbe, LoRA, PaperForm, Strategy
from kora.adapters.folder import save_adapter
from kora.backbone.vit import Backbone
from kora.tasks import ClassificationTask
from tests.support.factory import built, kick, nano
from tests.support.tasks import Colours, trainer, unbuilt


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Lightning's own checkpoint after one epoch of LoRA."""
    fit = trainer(tmp_path, max_epochs=1, callbacks=[ModelCheckpoint(tmp_path, filename="one")])
    fit.fit(unbuilt(), datamodule=Colours())
    return tmp_path / "one.ckpt"


# -- what trains ----------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [LinearProbe, FullFineTune, LoRA, KoRA])
def test_the_optimiser_holds_exactly_what_trains(
    adapter: Callable[[], Strategy], tmp_path: Path
) -> None:
    task = unbuilt(adapter(), head_lr=0.5)
    fit = trainer(tmp_path, max_steps=1, enable_checkpointing=False)
    fit.fit(task, datamodule=Colours())
    (optimizer,) = fit.optimizers
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, task.trainables().values()))
    assert {id(p) for p in task.parameters() if p.requires_grad} == set(map(id, held))
    decayed = {g["weight_decay"] for g in optimizer.param_groups for p in g["params"] if p.ndim < 2}
    assert decayed == {0.0}
    head = {id(p) for p in task.head.parameters()}
    for group in optimizer.param_groups:
        in_head = {id(p) in head for p in group["params"]}
        assert in_head == {group["initial_lr"] == 0.5}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_it_steps_in_one_operation_and_gradients_are_clipped_for_it(
    precision: str, tmp_path: Path
) -> None:
    fit = trainer(
        tmp_path, max_steps=1, enable_checkpointing=False, precision=precision,
        gradient_clip_val=1e-3,
    )  # fmt: skip
    task = unbuilt()
    fit.fit(task, datamodule=Colours())
    assert {group["fused"] for group in fit.optimizers[0].param_groups} == {True}
    norm = torch.stack([p.grad.norm() for p in task.trainables().values()]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=0.01)


def test_the_optimiser_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    task = unbuilt(optimizer=lambda params: torch.optim.SGD(params, lr=0.3, momentum=0.9))
    fit = trainer(tmp_path, max_steps=1, enable_checkpointing=False)
    fit.fit(task, datamodule=Colours())
    assert isinstance(fit.optimizers[0], torch.optim.SGD)
    assert {g["initial_lr"] for g in fit.optimizers[0].param_groups} == {0.3}


def test_the_rate_rises_and_falls_by_optimiser_steps(tmp_path: Path) -> None:
    """Accumulated batches are one step: 3 batches and 4 epochs, two at a time, are 8 steps."""
    rates: list[float] = []

    class Watched(ClassificationTask):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    task = Watched(nano(), LoRA(2), warmup_fraction=0.25)
    fit = trainer(tmp_path, max_epochs=4, accumulate_grad_batches=2, enable_checkpointing=False)
    fit.fit(task, datamodule=Colours())
    assert len(rates) == 8
    assert rates[:3] == pytest.approx([0.5e-3, 1e-3, 1e-3])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < 1e-4


def test_one_step_alone_already_trains(tmp_path: Path) -> None:
    task = unbuilt(LinearProbe())
    task.build_head = _counted(task.build_head)
    fit = trainer(tmp_path, max_steps=1, enable_checkpointing=False)
    fit.fit(task, datamodule=Colours())
    assert not torch.equal(task.head.linear.weight, task.head.start)


def _counted(make: Callable[[], Any]) -> Callable[[], Any]:
    def made() -> Any:
        head = make()
        head.start = head.linear.weight.detach().clone()
        return head

    return made


# -- checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [LinearProbe, LoRA, KoRA, FullFineTune])
def test_the_state_dict_holds_adapter_and_head_only(adapter: Callable[[], Strategy]) -> None:
    task = built(adapter())
    names = set(task.state_dict())
    assert {name.split(".")[0] for name in names} <= {"adapter", "head"}
    assert task.trainables().keys() <= names
    assert not any(tensor.requires_grad for tensor in task.state_dict().values())


def test_the_state_dict_loads_back() -> None:
    task, other = kick(built(KoRA())), built(KoRA(), seed=8)
    other.load_state_dict(task.state_dict())
    mine, theirs = task.state_dict(), other.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


KEY = "adapter.deltas.b00_qkv.up_OR"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(KEY), rf"'{KEY}' is missing"),
        (lambda s: s.pop("head.linear.bias"), r"'head\.linear\.bias' is missing"),
        (lambda s: s.update(surplus=torch.zeros(2)), r"'surplus' is unknown here"),
        (lambda s: s.update({"x": s.pop(KEY)}), rf"'{KEY}' is missing; 'x' is unknown here"),
        (
            lambda s: s.update({KEY: torch.zeros(3)}),
            rf"'{KEY}' has shape \(3,\), expected \(384, 8",
        ),
        (lambda s: s.clear(), r"and 46 more"),
    ],
    ids=["missing", "head_missing", "extra", "renamed", "shape", "empty"],
)
@pytest.mark.parametrize("strict", [True, False])
def test_a_state_dict_that_differs_is_refused_and_nothing_is_loaded(
    change: Callable[[dict[str, Tensor]], object], message: str, strict: bool
) -> None:
    task, other = built(LoRA()), kick(built(LoRA()))
    state = other.state_dict()
    change(state)
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        task.load_state_dict(state, strict=strict)
    assert all(torch.equal(tensor, before[n]) for n, tensor in task.state_dict().items())


def test_lightnings_checkpoint_is_small_and_resumes(checkpoint: Path, tmp_path: Path) -> None:
    stored = torch.load(checkpoint, weights_only=True)
    assert {name.split(".")[0] for name in stored["state_dict"]} == {"adapter", "head"}
    task = unbuilt()
    fit = trainer(tmp_path, max_epochs=2, enable_checkpointing=False)
    fit.fit(task, datamodule=Colours(), ckpt_path=checkpoint, weights_only=True)
    assert fit.current_epoch == 2
    assert fit.global_step == 6


def test_a_run_that_was_cut_in_two_equals_one_that_was_not(tmp_path: Path) -> None:
    def run(folder: Path, epochs: int, ckpt: Path | None = None) -> ClassificationTask:
        task = unbuilt(KoRA(PaperForm(2), 4), schedule="constant", warmup_fraction=0.0)
        saver = ModelCheckpoint(folder, filename=f"after{epochs}")
        fit = trainer(tmp_path, max_epochs=epochs, callbacks=[saver])
        fit.fit(task, datamodule=Colours(), ckpt_path=ckpt)
        return task

    whole = run(tmp_path / "whole", 2)
    run(tmp_path / "half", 1)
    resumed = run(tmp_path / "rest", 2, tmp_path / "half" / "after1.ckpt")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_a_checkpoint_of_another_backbone_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    other = nano()
    with torch.no_grad():
        other.model.norm.bias += 1
    with pytest.raises(ValueError, match=r"belongs to the backbone 'vit_nano' with weights.*this"):
        trainer(tmp_path).test(
            unbuilt(backbone=other), datamodule=Colours(), ckpt_path=checkpoint, verbose=False
        )


def test_a_checkpoint_of_another_normalisation_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    other = nano(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    message = r"with the values of its weights; this run has .*0\.485.*backbone\.mean and std as in"
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).test(
            unbuilt(backbone=other), datamodule=Colours(), ckpt_path=checkpoint, verbose=False
        )


def test_a_checkpoint_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not written by kora.*--ckpt_path"):
        built(LoRA()).on_load_checkpoint({"state_dict": {}})


# -- settings -------------------------------------------------------------------------------------


def test_a_source_adapter_is_loaded_and_the_head_is_new(tmp_path: Path, images: Tensor) -> None:
    source = kick(built(KoRA(PaperForm(2), 4)))
    save_adapter(tmp_path, source.kept_tensors(), adapter=source.adapter, backbone=source.backbone)
    task = built(KoRA(PaperForm(2), 4), adapter_from=str(tmp_path), num_classes=3, seed=5)
    assert torch.equal(task.features(images).pooled, source.features(images).pooled)
    assert task(images).shape == (3, 3)
    assert task.source is not None
    assert task.source["folder"] == str(tmp_path)


def test_configure_model_builds_once() -> None:
    task = unbuilt(num_classes=7)
    task.configure_model()
    head = task.head
    task.configure_model()
    assert task.head is head


@pytest.mark.parametrize("share", [-0.1, 1.0, 2])
def test_a_warm_up_outside_of_the_run_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=rf"warmup_fraction={share}, expected a share in \[0, 1\)"):
        unbuilt(warmup_fraction=share)


def test_an_unknown_schedule_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match="schedule='linear', expected one of cosine, constant"):
        unbuilt(schedule="linear")


def test_the_frozen_weights_are_the_same_to_the_bit_after_a_fit(tmp_path: Path) -> None:
    task = unbuilt(LoRA(2))
    before: str = task.backbone.sha256
    fit = trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    fit.fit(task, datamodule=Colours())
    fresh = Backbone("vit_nano", weights="random")
    state = {k.replace(".base.", "."): v for k, v in task.backbone.model.state_dict().items()}
    fresh.model.load_state_dict(state)
    assert fresh.sha256 == before
