"""Claims that every strategy holds, from the built task to the adapter folder and back.

On every family of backbones: test_contract_families.py; of arguments: test_contract_arguments.py.
"""

from __future__ import annotations

import copy
import inspect
import io
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import kora.adapters
from kora.adapters import LoRA, Strategy, describe
from kora.adapters.folder import ADAPTER_WEIGHTS, load_adapter, save_adapter
from kora.backbone.frozen_inputs import is_read
from kora.tasks import ClassificationTask
from tests.support.adapters import gradients, loss_of, rebuild
from tests.support.factory import built, kick
from tests.support.families import tiny
from tests.support.strategies import STRATEGIES, Entry


@pytest.fixture(params=STRATEGIES)
def make(request: pytest.FixtureRequest) -> Entry:
    return STRATEGIES[request.param]


def on_tiny(
    strategy: Strategy, *, checkpointing: bool = False, **options: Any
) -> ClassificationTask:
    backbone = tiny("tiny_vit")
    backbone.model.set_grad_checkpointing(checkpointing)
    return built(strategy, backbone=backbone, **options)


def test_only_what_is_declared_changes_by_training(make: Entry, images: Tensor) -> None:
    task = kick(on_tiny(make())).train()
    declared = {id(p) for p in task.trainables().values()}
    everything = dict(task.named_parameters()) | dict(task.named_buffers())
    before = {name: tensor.detach().clone() for name, tensor in everything.items()}
    assert {id(p) for p in task.parameters() if p.requires_grad} == declared
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(task, images).backward()
        optimizer.step()
    changed = {name for name in everything if not torch.equal(everything[name], before[name])}
    assert changed == {name for name, tensor in everything.items() if id(tensor) in declared}


def test_it_starts_at_the_frozen_features_or_says_that_it_does_not(
    make: Entry, images: Tensor
) -> None:
    task = on_tiny(make())
    equal = torch.equal(task.features(images).pooled, tiny("tiny_vit")(images).pooled)
    assert equal != make.starts_elsewhere


def test_in_bfloat16_it_starts_within_a_rounding_of_the_frozen_features_and_trains(
    make: Entry, images: Tensor
) -> None:
    """As with trainer.precision: bf16-true, where what trains is bfloat16 as well."""
    task, frozen = on_tiny(make()).bfloat16(), tiny("tiny_vit").bfloat16()
    expected = frozen(images).pooled
    difference = (
        (task.features(images).pooled[:, : expected.shape[1]] - expected).abs().max().item()
    )
    # DoRA's lengths are rounded; 0.017 is what the type does to the frozen features themselves.
    assert difference < 0.02 or make.starts_elsewhere
    _, found = gradients(task, images)
    assert all(torch.isfinite(gradient).all() for gradient in found.values())


def test_every_strategy_of_the_package_has_an_entry() -> None:
    kinds = {kind for kind in vars(kora.adapters).values() if inspect.isclass(kind)}
    concrete = {k for k in kinds if issubclass(k, Strategy) and not inspect.isabstract(k)}
    assert concrete - {entry.kind for entry in STRATEGIES.values()} == set()


def test_describe_round_trips_through_its_class_path(make: Entry) -> None:
    record = json.loads(json.dumps(describe(make())))
    again = rebuild(record)
    assert describe(again) == record == describe(make())
    assert [tuple(t.shape) for t in on_tiny(again).kept_tensors().values()] == [
        tuple(t.shape) for t in on_tiny(make()).kept_tensors().values()
    ]


class Toy(LoRA):
    """A strategy from outside of the package."""


def test_describe_gives_the_long_path_where_there_is_no_short_one() -> None:
    assert describe(Toy())["class_path"] == f"{__name__}.Toy"
    assert describe(LoRA())["class_path"] == "kora.adapters.LoRA"
    found = type("Found", (LoRA,), {"__module__": "kora.adapters.found"})
    assert describe(found())["class_path"] == "kora.adapters.found.Found"


def test_copies_and_pickles_give_equal_logits(make: Entry, images: Tensor) -> None:
    task = kick(on_tiny(make()))
    loss_of(task, images).backward()
    expected = task(images)
    buffer = io.BytesIO(pickle.dumps(task))
    copies = copy.deepcopy(task), pickle.load(buffer)
    kick(task, seed=9)  # a copy that shares a tensor with the original would move with it
    for other in copies:
        assert torch.equal(other(images), expected)
        assert other.backbone.sha256 == task.backbone.sha256


def test_the_adapter_folder_gives_equal_logits(make: Entry, images: Tensor, tmp_path: Path) -> None:
    task, other = kick(on_tiny(make())), on_tiny(make(), seed=8)
    save_adapter(tmp_path, task.kept_tensors(), adapter=task.adapter, backbone=task.backbone)
    load_adapter(tmp_path, other.adapter, other.backbone)
    assert torch.equal(other.features(images).pooled, task.features(images).pooled)
    assert not torch.equal(other(images), task(images))  # the head is not taken over
    other.load_state_dict(load_file(tmp_path / ADAPTER_WEIGHTS))
    assert torch.equal(other(images), task(images))


def test_a_frozen_adapter_trains_the_head_only(make: Entry, images: Tensor) -> None:
    task = kick(on_tiny(make(), adapter_trainable=False)).train()
    recording: list[bool] = []
    task.backbone.register_forward_hook(lambda *_: recording.append(torch.is_grad_enabled()))
    loss_of(task, images).backward()
    assert recording == [False]  # nothing of the backbone is kept for a backward pass
    assert list(task.trainables()) == ["head.linear.weight", "head.linear.bias"]
    assert {n for n, p in task.named_parameters() if p.requires_grad} == set(task.trainables())
    assert not task.features(images).pooled.requires_grad
    assert not any(module.training for module in task.adapter.modules())


def test_bfloat16_autocast_is_near_float32(make: Entry, images: Tensor) -> None:
    task = kick(on_tiny(make()))
    exact = loss_of(task, images)
    with torch.autocast("cpu", torch.bfloat16):
        near = loss_of(task, images)
        near.backward()
    assert near.item() == pytest.approx(exact.item(), rel=0.03)
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in task.parameters())


def test_gradient_checkpointing_changes_neither_loss_nor_gradients(
    make: Entry, images: Tensor
) -> None:
    plain = kick(on_tiny(make()))
    saving = kick(on_tiny(make(), checkpointing=True))
    loss, expected = gradients(plain, images)
    again, found = gradients(saving, images)
    assert again == pytest.approx(loss, rel=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    copy.deepcopy(saving)  # nothing of the recomputed graph is left behind
    assert torch.equal(saving(images), saving(images))


def test_validation_in_inference_mode_and_training_after_it(make: Entry, images: Tensor) -> None:
    task = kick(on_tiny(make()))
    with torch.inference_mode():
        looked = task(images)
    assert torch.equal(looked, task(images))
    loss_of(task, images).backward()


def test_batches_of_one_and_of_other_sizes_follow_each_other(make: Entry, images: Tensor) -> None:
    task = kick(on_tiny(make()))
    whole = task(images)
    single = torch.cat([task(image[None]) for image in images])
    torch.testing.assert_close(single, whole, rtol=1e-4, atol=1e-5)


#: One of each class that computes something of its own, and a form of KoRA: to trace one takes
#: seconds. LoRA and KoRA themselves are traced in tests/backbone/test_kernels.py.
TRACED = [
    "MultiLayerProbe", "KoRA-refined-injected", "SSF", "DoRA", "VPT", "Bottleneck",
    "AdapterFusion", "LowRankFusion",
]  # fmt: skip


@pytest.mark.parametrize("name", TRACED)
def test_traced_for_the_compiler_it_is_equal(name: str, images: Tensor) -> None:
    require_equal_compiled(STRATEGIES[name], images, backend="eager")  # graphs, run by Python


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_it_is_equal(images: Tensor) -> None:
    require_equal_compiled(STRATEGIES["KoRA-refined"], images, backend="inductor")


def require_equal_compiled(make: Entry, images: Tensor, *, backend: str) -> None:
    torch.compiler.reset()  # above a number of graphs nothing more is compiled, silently
    plain, compiled = kick(on_tiny(make())), kick(on_tiny(make()))
    names = list(compiled.state_dict())
    compiled.compile(backend=backend)
    loss, expected = gradients(plain, images)
    again, found = gradients(compiled, images)
    assert again == pytest.approx(loss, rel=1e-4)
    assert list(compiled.state_dict()) == names
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(compiled(images), plain(images), rtol=1e-4, atol=1e-5)


def test_what_may_be_kept_of_a_pass_is_all_that_it_reads_and_does_not_change_by_training(
    make: Entry, images: Tensor
) -> None:
    task = on_tiny(make())
    adapter, backbone = task.adapter, task.backbone
    if adapter.needs_backbone_grad:
        with pytest.raises(ValueError, match="changes what the backbone"):
            adapter.frozen_pass()
        return
    if type(adapter).frozen_pass is Strategy.frozen_pass:
        return  # it has not opted in
    kept = adapter.frozen_pass()
    assert json.loads(json.dumps(kept.key())) == kept.key()
    inputs = kept.inputs(backbone, images)
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    kick(task).train()
    again = kept.inputs(backbone, images)
    assert again.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in again.items())
    assert not any(tensor.requires_grad for tensor in again.values())
    pooled = kept.features(before).pooled
    assert torch.equal(pooled, adapter(backbone, images).pooled)
    fields = ("pooled", *kept.reads)
    read = {name: tensor for name, tensor in before.items() if is_read(name, fields)}
    assert torch.equal(kept.features(read).pooled, pooled)
    vectors = all(tensor.ndim == 2 for tensor in read.values())
    assert vectors != kept.keeps_tokens, "a vector an image, no tokens"
