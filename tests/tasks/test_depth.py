"""Claims about the depth task: what it learns from, what it counts, and what stands beside it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer, seed_everything
from torch import Tensor

from datamodules import Synthetic
from kora.adapters import ClsReadout, KoRA, LinearProbe, LoRA, PaperForm, Strategy, TokenReadout
from kora.heads import DPTDepth, LinearDepth
from kora.losses import ScaleShiftInvariantLoss, SILogLoss
from kora.metrics.protocol import DepthProtocol
from kora.tasks import DepthTask
from tests.support.factory import kick, nano

Batch = dict[str, Tensor]


def scenes(**options: Any) -> Synthetic:
    """48 training, 12 validation and 24 test scenes of 32 pixels with depth."""
    return Synthetic(
        **{
            "image_size": 32,
            "train_images": 60,
            "test_images": 24,
            "val_images": 12,
            "batch_size": 12,
            "maps": ["depth_m"],
            "seed": 0,
            **options,
        }
    )


def unbuilt(adapter: Strategy | None = None, **options: Any) -> DepthTask:
    seed_everything(2, verbose=False)
    return DepthTask(nano(image_size=32), adapter, **{"protocol": "full", **options})


def built(adapter: Strategy | None = None, **options: Any) -> DepthTask:
    task = unbuilt(adapter, **options)
    task.build()
    return task


def trainer(folder: Path, **options: Any) -> Trainer:
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "accelerator": "cpu",
        "default_root_dir": folder,
    }
    return Trainer(**(quiet | options))


def batch_of(data: Synthetic, split: Any = "test", images: int = 4) -> Batch:
    data.setup()
    return data.samples(split, list(range(images)))


# -- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "loss"),
    [
        (None, None),
        (DPTDepth(features=16), SILogLoss()),
        (None, ScaleShiftInvariantLoss()),
    ],
)
def test_it_learns_the_depth_of_a_few_scenes(head: Any, loss: Any) -> None:
    task = built(LoRA(4), head=head, loss=loss)
    task.log = lambda *args, **kwargs: None
    batch = batch_of(scenes(), "train")
    optimizer = torch.optim.Adam(task.trainables().values(), lr=3e-3)
    losses = []
    for _ in range(18):
        optimizer.zero_grad()
        value = task.training_step(batch, 0)
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_unmeasured_and_out_of_range_pixels_teach_nothing() -> None:
    task = built(LoRA(2), protocol=DepthProtocol(crop="none", max_depth_m=4.0))
    task.log = lambda *args, **kwargs: None
    batch = batch_of(scenes(), "train")
    blind, far = batch["depth_m"].clone(), batch["depth_m"].clone()
    blind[:, :10] = 0.0
    far[:, :10] = 4.5
    gradients = []
    for depth in (blind, far):
        task.zero_grad()
        task.training_step({**batch, "depth_m": depth}, 0).backward()
        gradients.append(
            {k: p.grad.clone() for k, p in task.trainables().items() if p.grad is not None}
        )
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_the_backbone_returns_the_levels_that_the_head_reads(images: Tensor) -> None:
    task = built(head=LinearDepth(levels=4))
    assert task.backbone.levels == task.head.blocks(task.backbone.depth)
    assert len(task.features(images).levels) == 4
    assert task(images).shape[0] == len(images)


def test_only_adapter_and_head_train_and_are_kept() -> None:
    task = built(LoRA(2), head=DPTDepth(features=16))
    assert all(name.startswith(("adapter.", "head.")) for name in task.state_dict())
    assert set(task.trainables()) <= set(task.state_dict())
    assert not any(p.requires_grad for p in task.backbone.parameters())


# -- what a patch head sees of KoRA ---------------------------------------------------------------


def kora(readout: str, *, inject: bool) -> KoRA:
    made = {"cls": ClsReadout("default"), "tokens": TokenReadout("default")}[readout]
    pool: Any = "tokens" if readout == "tokens" else "mean"
    return KoRA(PaperForm(2, inject=inject, pool=pool), 4, readout=made)


def test_the_papers_readout_leaves_a_patch_token_head_unchanged_to_the_bit(images: Tensor) -> None:
    alone = built(LinearProbe(), head=LinearDepth(levels=4))
    for readout, unchanged in (("cls", True), ("tokens", False)):
        task = built(kora(readout, inject=False), head=LinearDepth(levels=4))
        with torch.no_grad():
            for name, tensor in alone.head.state_dict().items():
                task.head.state_dict()[name].copy_(tensor)
            for parameter in task.adapter.parameters():
                parameter += 0.3
        assert torch.equal(task(images), alone(images)) == unchanged


@pytest.mark.parametrize("inject", [False, True])
def test_what_has_no_influence_is_said_after_the_first_step_and_tokens_suggested(
    inject: bool, tmp_path: Path
) -> None:
    task = unbuilt(kora("cls", inject=inject))
    with pytest.warns(UserWarning, match="do not influence the loss") as caught:
        trainer(tmp_path, max_epochs=1).fit(task, datamodule=scenes())
    said = [str(w.message) for w in caught if "do not influence" in str(w.message)]
    assert len(said) == 1
    idle = sum(
        p.numel()
        for name, p in task.trainables().items()
        if name.startswith("adapter.") and (not inject or ".delta." not in name)
    )
    assert f"KoRA{'' if inject else '-side'}: {idle:,} trainable numbers" in said[0]
    assert "TokenReadout with pool tokens" in said[0]


def test_data_parallel_training_of_what_has_no_influence_is_told_its_two_ways_out(
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {"max_steps": 2, "devices": 1}
    with pytest.raises(ValueError, match="ddp_find_unused_parameters_true") as caught:
        trainer(tmp_path, strategy="ddp", **options).fit(
            unbuilt(kora("cls", inject=True)), datamodule=scenes()
        )
    assert "TokenReadout with pool tokens" in str(caught.value)
    with pytest.warns(UserWarning, match="do not influence the loss"):
        trainer(tmp_path, strategy="ddp_find_unused_parameters_true", **options).fit(
            unbuilt(kora("cls", inject=True)), datamodule=scenes()
        )


@pytest.mark.parametrize("adapter", [None, LoRA(2), kora("tokens", inject=True)])
def test_nothing_is_said_where_all_of_it_has_influence(adapter: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, max_steps=1).fit(unbuilt(adapter), datamodule=scenes())
    assert not [w for w in caught if "do not influence" in str(w.message)]


# -- evaluation -----------------------------------------------------------------------------------


def test_the_logged_metrics_are_those_of_the_predictions(tmp_path: Path) -> None:
    task, data = kick(built(LoRA(2))), scenes(eval_batch_size=7)
    (logged,) = trainer(tmp_path).test(task, datamodule=data, verbose=False)
    truth = data.samples("test", list(range(24)))
    with torch.no_grad():
        predicted = task.predict_step(truth, 0)["depth_m"].numpy().astype(np.float64)
    measured = truth["depth_m"].numpy().astype(np.float64)
    each = [np.sqrt(np.mean((p - t) ** 2)) for p, t in zip(predicted, measured, strict=True)]
    assert logged["test/rmse_m"] == pytest.approx(np.mean(each), rel=1e-5)
    relative = [np.mean(abs(p - t) / t) for p, t in zip(predicted, measured, strict=True)]
    assert logged["test/abs_rel"] == pytest.approx(np.mean(relative), rel=1e-5)
    assert logged["test/skipped_images"] == 0
    assert {f"test/delta{k}" for k in (1, 2, 3)} <= set(logged)


def test_the_constants_beside_the_model_come_from_training_depth_alone(tmp_path: Path) -> None:
    task, data = built(), scenes()
    trainer(tmp_path).test(task, datamodule=data, verbose=False)
    train = data.samples("train", list(range(48)))["depth_m"].numpy().astype(np.float64)
    test = data.samples("test", list(range(24)))["depth_m"].numpy().astype(np.float64)
    constants = {"mean_depth": train.mean(), "mean_map": train.mean(axis=0)}
    found = task.baselines()
    assert set(found) == set(constants)
    for kind, constant in constants.items():
        rmse = np.mean([np.sqrt(np.mean((constant - t) ** 2)) for t in test])
        assert found[kind]["rmse_m"] == pytest.approx(rmse, rel=1e-4), kind
    assert found["mean_map"]["rmse_m"] < found["mean_depth"]["rmse_m"]


def test_a_flipped_image_is_averaged_in_where_the_protocol_says_so(images: Tensor) -> None:
    plain = kick(built())
    flipped = kick(built(protocol=DepthProtocol(crop="none", flip_tta=True)))
    one, other = plain(images), plain(images.flip(-1)).flip(-1)
    assert not torch.allclose(one, other)
    torch.testing.assert_close(flipped.flipped_mean(images), (one + other) / 2)
    # A mean over both directions does not know which is which.
    torch.testing.assert_close(
        flipped.flipped_mean(images), flipped.flipped_mean(images.flip(-1)).flip(-1)
    )


def test_predictions_are_metres_at_the_size_of_the_image_inside_the_range() -> None:
    task = built(protocol=DepthProtocol(crop="none", min_depth_m=2.0, max_depth_m=3.0))
    batch = batch_of(scenes())
    with torch.no_grad():
        predicted = task.predict_step(batch, 0)
    assert predicted["depth_m"].shape == batch["depth_m"].shape
    assert predicted["depth_m"].dtype == torch.float32
    assert float(predicted["depth_m"].min()) >= 2.0
    assert float(predicted["depth_m"].max()) <= 3.0
    assert torch.equal(predicted["index"], batch["index"])


def test_the_evaluation_names_its_split_and_is_held_to_it() -> None:
    assert built().evaluation("test")["split"] == "test"
    held = built(protocol=DepthProtocol(crop="none", split="val"))
    with pytest.raises(ValueError, match=r"protocol\.split is 'val'.*evaluates on 'test'"):
        held.evaluation("test")


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_bfloat16_trains_and_gives_finite_metrics(tmp_path: Path, precision: Any) -> None:
    task = unbuilt(LoRA(2), head=LinearDepth(levels=4))
    fit = trainer(tmp_path, max_epochs=1, precision=precision)
    fit.fit(task, datamodule=scenes())
    assert torch.isfinite(fit.callback_metrics["val/rmse_m"])


# -- mistakes -------------------------------------------------------------------------------------


def test_data_without_depth_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no depth_m\..*NYUDepthV2.*maps: \[depth_m\]"):
        trainer(tmp_path, max_steps=1).fit(unbuilt(), datamodule=scenes(maps=None))


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ValueError, match=r"protocol is 'garg', expected eigen, full"):
        unbuilt(protocol="garg")


def test_a_field_laid_over_a_preset_keeps_its_crop_and_none_is_guessed() -> None:
    over = unbuilt(protocol={"preset": "full", "flip_tta": True}).protocol
    assert over == DepthProtocol(crop="none", flip_tta=True)
    with pytest.raises(ValueError, match="flip_tta, but neither preset nor crop"):
        unbuilt(protocol={"flip_tta": True})
    with pytest.raises(ValueError, match=r"protocol\.flop is no field"):
        unbuilt(protocol={"preset": "full", "flop": True})


def test_a_checkpoint_of_another_depth_range_is_refused() -> None:
    task = built(head=LinearDepth(max_depth_m=10.0))
    checkpoint: dict[str, Any] = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(checkpoint)
    built(head=LinearDepth(max_depth_m=10.0)).on_load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match=r"10\.0.*this run has.*20\.0"):
        built(head=LinearDepth(max_depth_m=20.0)).on_load_checkpoint(checkpoint)
