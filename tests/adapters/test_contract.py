"""Claims that every strategy holds, from the built task to the adapter folder and back."""

from __future__ import annotations

import copy
import importlib
import io
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from kora.adapters import (
    AdapterFusion,
    Bottleneck,
    ClsReadout,
    FullFineTune,
    KoRA,
    LinearProbe,
    LoRA,
    LowRankFusion,
    Sequential,
    Strategy,
    describe,
)
from kora.checkpoints import ADAPTER_WEIGHTS, load_adapter, save_adapter
from kora.tasks import ClassificationTask
from tests.factory import built, kick, labels_for, nano
from tests.fusion_factory import bottleneck_sources, lora_sources

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "LinearProbe": LinearProbe,
    "FullFineTune": FullFineTune,
    "LoRA": lambda: LoRA(2, 0.5, sites=["q", "v", "proj"]),
    "KoRA": lambda: KoRA(2, 4, alpha=0.5, composer=Sequential(), readout=ClsReadout("default")),
    "KoRA-side": lambda: KoRA(2, 4, inject=False),
    "KoRA-tokens": lambda: KoRA(2, 4, pool="tokens", sites=("fc1", "v")),
    "KoRA-published": lambda: KoRA(
        2, 4, inject=False, readout=ClsReadout("default", trainable=False)
    ),
    "Bottleneck": lambda: Bottleneck(3, "houlsby", alpha=0.5, blocks=(0, 2)),
    "Bottleneck-zero": lambda: Bottleneck(3, init="lora"),
    "Bottleneck-parallel": lambda: Bottleneck(3, "parallel", scale="layer"),
    "Adapter+": lambda: Bottleneck(3, "post", activation="gelu", scale="channel"),
    "AdapterFusion": lambda: AdapterFusion(bottleneck_sources()),
    "LowRankFusion-LoRA": lambda: LowRankFusion(lora_sources(), 3),
}


@pytest.fixture(params=STRATEGIES)
def make(request: pytest.FixtureRequest) -> Callable[[], Strategy]:
    return STRATEGIES[request.param]


def loss_of(task: nn.Module, images: Tensor) -> Tensor:
    return F.cross_entropy(task(images).float(), labels_for(images))


def gradients(task: ClassificationTask, images: Tensor) -> tuple[float, dict[str, Tensor]]:
    task.zero_grad()
    loss = loss_of(task, images)
    loss.backward()
    return loss.item(), {
        n: p.grad.clone() for n, p in task.trainables().items() if p.grad is not None
    }


def test_only_what_is_declared_changes_by_training(
    make: Callable[[], Strategy], images: Tensor
) -> None:
    task = kick(built(make())).train()
    declared = {id(p) for p in task.trainables().values()}
    everything = dict(task.named_parameters()) | dict(task.named_buffers())
    before = {name: tensor.detach().clone() for name, tensor in everything.items()}
    assert {id(p) for p in task.parameters() if p.requires_grad} == declared
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(task, images).backward()
        optimizer.step()
    changed = {name for name in everything if not torch.equal(everything[name], before[name])}
    assert changed == {name for name, tensor in everything.items() if id(tensor) in declared}


def test_it_starts_at_the_frozen_features_or_says_that_it_does_not(
    make: Callable[[], Strategy], images: Tensor
) -> None:
    task = built(make())
    equal = torch.equal(task.features(images).pooled, nano()(images).pooled)
    assert equal == task.adapter.starts_as_backbone


def test_describe_round_trips_through_its_class_path(make: Callable[[], Strategy]) -> None:
    record = json.loads(json.dumps(describe(make())))
    again = rebuild(record)
    assert describe(again) == record == describe(make())
    assert [tuple(t.shape) for t in built(again).kept_tensors().values()] == [
        tuple(t.shape) for t in built(make()).kept_tensors().values()
    ]


def rebuild(record: Any) -> Any:
    if not isinstance(record, dict) or "class_path" not in record:
        return record
    module, _, name = record["class_path"].rpartition(".")
    arguments = {key: rebuild(value) for key, value in record["init_args"].items()}
    return getattr(importlib.import_module(module), name)(**arguments)


class Toy(LoRA):
    """A strategy from outside of the package."""


def test_describe_gives_the_long_path_where_there_is_no_short_one() -> None:
    assert describe(Toy())["class_path"] == f"{__name__}.Toy"
    assert describe(LoRA())["class_path"] == "kora.adapters.LoRA"
    found = type("Found", (LoRA,), {"__module__": "kora.adapters.found"})
    assert describe(found())["class_path"] == "kora.adapters.found.Found"


@pytest.mark.parametrize("trained", [False, True])
def test_copies_and_pickles_give_equal_logits(
    trained: bool, make: Callable[[], Strategy], images: Tensor
) -> None:
    task = kick(built(make()))
    if trained:
        loss_of(task, images).backward()
    expected = task(images)
    buffer = io.BytesIO(pickle.dumps(task))
    copies = copy.deepcopy(task), pickle.load(buffer)
    kick(task, seed=9)  # a copy that shares a tensor with the original would move with it
    for other in copies:
        assert torch.equal(other(images), expected)
        assert other.backbone.sha256 == task.backbone.sha256


def test_the_adapter_folder_gives_equal_logits(
    make: Callable[[], Strategy], images: Tensor, tmp_path: Path
) -> None:
    task, other = kick(built(make())), built(make(), seed=8)
    save_adapter(tmp_path, task.kept_tensors(), adapter=task.adapter, backbone=task.backbone)
    load_adapter(tmp_path, other.adapter, other.backbone)
    assert torch.equal(other.features(images).pooled, task.features(images).pooled)
    assert not torch.equal(other(images), task(images))  # the head is not taken over
    other.load_state_dict(load_file(tmp_path / ADAPTER_WEIGHTS))
    assert torch.equal(other(images), task(images))


def test_a_frozen_adapter_trains_the_head_only(
    make: Callable[[], Strategy], images: Tensor
) -> None:
    task = kick(built(make(), adapter_trainable=False)).train()
    recording: list[bool] = []
    task.backbone.register_forward_hook(lambda *_: recording.append(torch.is_grad_enabled()))
    loss_of(task, images).backward()
    assert recording == [False]  # nothing of the backbone is kept for a backward pass
    assert list(task.trainables()) == ["head.linear.weight", "head.linear.bias"]
    assert {n for n, p in task.named_parameters() if p.requires_grad} == set(task.trainables())
    assert not task.features(images).pooled.requires_grad
    assert not any(module.training for module in task.adapter.modules())


def test_bfloat16_autocast_is_near_float32(make: Callable[[], Strategy], images: Tensor) -> None:
    task = kick(built(make()))
    exact = loss_of(task, images)
    with torch.autocast("cpu", torch.bfloat16):
        near = loss_of(task, images)
        near.backward()
    assert near.item() == pytest.approx(exact.item(), rel=0.03)
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in task.parameters())


def test_gradient_checkpointing_changes_neither_loss_nor_gradients(
    make: Callable[[], Strategy], images: Tensor
) -> None:
    plain = kick(built(make()))
    saving = kick(built(make(), backbone=nano(gradient_checkpointing=True)))
    loss, expected = gradients(plain, images)
    again, found = gradients(saving, images)
    assert again == pytest.approx(loss, rel=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    copy.deepcopy(saving)  # nothing of the recomputed graph is left behind
    assert torch.equal(saving(images), saving(images))


def test_validation_in_inference_mode_and_training_after_it(
    make: Callable[[], Strategy], images: Tensor
) -> None:
    task = kick(built(make()))
    with torch.inference_mode():
        looked = task(images)
    assert torch.equal(looked, task(images))
    loss_of(task, images).backward()


def test_batches_of_one_and_of_other_sizes_follow_each_other(
    make: Callable[[], Strategy], images: Tensor
) -> None:
    task = kick(built(make()))
    whole = task(images)
    single = torch.cat([task(image[None]) for image in images])
    torch.testing.assert_close(single, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize(
    "name",
    ["LoRA", "KoRA", "KoRA-side", "Bottleneck", "Bottleneck-parallel", "Adapter+", "AdapterFusion"],
)
def test_compiled_it_is_equal(name: str, images: Tensor) -> None:
    plain, compiled = kick(built(STRATEGIES[name]())), kick(built(STRATEGIES[name]()))
    names = list(compiled.state_dict())
    compiled.compile()
    loss, expected = gradients(plain, images)
    again, found = gradients(compiled, images)
    assert again == pytest.approx(loss, rel=1e-4)
    assert list(compiled.state_dict()) == names
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)
