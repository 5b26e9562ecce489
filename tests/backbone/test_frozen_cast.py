"""Claims about frozen weights in the type of autocast: cast once, never stale, never saved."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kora.adapters import BitFit, KoRA, LoRA, PaperForm, Strategy
from kora.backbone.frozen_cast import FrozenCast, autocast_type
from kora.backbone.sites import SiteLinear, find_sites, wrap
from kora.tasks import ClassificationTask
from tests.support.adapters import loss_of
from tests.support.factory import built, kick
from tests.support.families import tiny

HALF = torch.bfloat16


class Casts(TorchDispatchMode):
    """Counts casts of matrices of a size."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.seen = shape, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and tuple(args[0].shape) == self.shape:
            self.seen += 1
        return func(*args, **(kwargs or {}))


def site_layers(task: nn.Module) -> list[SiteLinear]:
    return [module for module in task.modules() if isinstance(module, SiteLinear)]


def step(task: ClassificationTask, images: Tensor) -> Tensor:
    with torch.autocast("cpu", HALF):
        loss = loss_of(task, images)
    if loss.requires_grad:
        loss.backward()
    return loss.detach()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "make",
    [lambda: LoRA(2), lambda: KoRA(PaperForm(2), 3), lambda: KoRA(PaperForm(2, inject=False), 3)],
)
def test_a_frozen_weight_is_cast_once_in_many_steps(
    make: Callable[[], Strategy], checkpointing: bool, images: Tensor
) -> None:
    backbone = tiny("tiny_vit")
    backbone.model.set_grad_checkpointing(checkpointing)
    task = built(make(), backbone=backbone).train()
    with Casts((96, 32)) as casts:  # qkv of the two blocks
        for _ in range(3):
            step(task, images)
    assert casts.seen == 2


def write(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.weight.add_(1)


def load(layer: nn.Linear) -> None:
    layer.load_state_dict({k: v + 1 for k, v in layer.state_dict().items()})


def replace_storage(layer: nn.Linear) -> None:
    layer.weight.data = layer.weight.data + 1


def replace_parameter(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(layer.weight + 1, requires_grad=False)


def reinitialise(layer: nn.Linear) -> None:
    nn.init.normal_(layer.weight)


@pytest.mark.parametrize(
    "change",
    [write, load, replace_storage, replace_parameter, reinitialise],
    ids=lambda change: change.__name__,
)
def test_a_change_of_the_weight_is_seen(change: Callable[[nn.Linear], None]) -> None:
    layer, cast = nn.Linear(4, 3).requires_grad_(False), FrozenCast()
    first, _ = cast.tensors(layer, HALF)
    assert cast.tensors(layer, HALF)[0] is first
    change(layer)
    second, bias = cast.tensors(layer, HALF)
    assert not torch.equal(first, second)
    assert torch.equal(second, layer.weight.to(HALF))
    assert bias is not None
    assert torch.equal(bias, layer.bias.to(HALF))


def test_a_write_through_data_is_seen_after_a_change_of_mode(images: Tensor) -> None:
    task = built(LoRA(2), backbone=tiny("tiny_vit")).train()
    before = step(task, images)
    for layer in site_layers(task):
        layer.base.weight.data.mul_(-1)  # leaves no trace
    assert not torch.equal(step(task.eval(), images), before)


def test_other_types_are_made_and_its_own_is_no_copy() -> None:
    layer, cast = nn.Linear(4, 3, bias=False).requires_grad_(False), FrozenCast()
    assert cast.tensors(layer, torch.float32) == (layer.weight, None)
    for kind in (HALF, torch.float16, HALF):
        assert cast.tensors(layer, kind)[0].dtype == kind


def test_what_trains_is_never_kept(images: Tensor) -> None:
    layer, cast = nn.Linear(4, 3), FrozenCast()
    assert cast.tensors(layer, HALF)[0].requires_grad
    assert cast.tensors(layer, HALF)[0] is not cast.tensors(layer, HALF)[0]
    backbone = tiny("tiny_vit")
    for site in find_sites(backbone, ["fc1", "fc2"]):
        wrap(backbone, site, lambda x: None)
    task = built(BitFit(), backbone=backbone).train()
    step(task, images)
    assert all(not layer.cast._kept for layer in site_layers(task))
    assert all(layer.base.bias.grad is not None for layer in site_layers(task))


def test_training_works_after_validation_in_inference_mode(images: Tensor) -> None:
    task = kick(built(LoRA(2), backbone=tiny("tiny_vit")))
    with torch.inference_mode():
        looked = step(task, images)
    assert torch.equal(step(task, images), looked)
    assert all(p.grad is not None for p in task.trainables().values())


def test_copies_are_in_no_file_and_in_no_copy(images: Tensor) -> None:
    task = built(LoRA(2), backbone=tiny("tiny_vit"))
    names, size = list(task.backbone.state_dict()), len(pickle.dumps(task))
    step(task, images)
    task.zero_grad()
    assert list(task.backbone.state_dict()) == names
    buffer = io.BytesIO()
    torch.save(task, buffer)
    assert len(pickle.dumps(task)) == pytest.approx(size, rel=0.01)
    for other in (copy.deepcopy(task), pickle.loads(pickle.dumps(task))):
        assert all(not layer.cast._kept for layer in site_layers(other))
    assert all(layer.cast._kept for layer in site_layers(task))
    assert not copy.deepcopy(FrozenCast(keeps=False)).keeps


def test_the_type_is_that_of_a_product_under_autocast() -> None:
    for kind in (torch.float32, HALF, torch.float64, torch.float16):
        x = torch.zeros(1, 1, dtype=kind)
        with torch.autocast("cpu", HALF):
            assert autocast_type(x) == torch.mm(x, x).dtype
        assert autocast_type(x) == kind
