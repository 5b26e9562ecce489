"""Claims about inputs that are computed again: only where they are what the note says."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kora.backbone.frozen_cast import FrozenCast
from kora.backbone.kernels import Update, updated_linear
from kora.backbone.recompute import note, recipe_of


class Other(nn.LayerNorm):
    """A norm under another name may compute in another way."""


def frozen(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    note(module.requires_grad_(False))
    return module


def source() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(3, 8, requires_grad=True) * 2


@pytest.mark.parametrize(
    "module",
    [nn.LayerNorm(8), nn.LayerNorm(8, bias=False), nn.GELU(), nn.GELU(approximate="tanh")],
    ids=repr,
)
def test_a_recipe_gives_the_noted_tensor_to_the_bit(module: nn.Module) -> None:
    for one in (frozen(module), copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        x = one(source())
        recipe = recipe_of(x)
        assert recipe is not None
        assert torch.equal(recipe(*recipe.tensors), x)


@pytest.mark.parametrize("module", [Other(8), nn.RMSNorm(8), nn.ReLU(), nn.Linear(8, 8)], ids=repr)
def test_no_other_layer_is_noted(module: nn.Module) -> None:
    assert recipe_of(frozen(module)(source())) is None


def test_noting_twice_is_noting_once() -> None:
    norm = frozen(nn.LayerNorm(8))
    note(norm)
    assert len(norm._forward_hooks) == 1


def in_place_afterwards(norm: nn.Module) -> Tensor:
    x: Tensor = norm(source())
    return x.mul_(2)


def replaced_by_an_earlier_hook(norm: nn.Module) -> Tensor:
    other = nn.LayerNorm(8)
    other.register_forward_hook(lambda module, args, output: output * 2)
    x: Tensor = frozen(other)(source())
    return x


def replaced_by_a_later_hook(norm: nn.Module) -> Tensor:
    norm.register_forward_hook(lambda module, args, output: output * 2)
    x: Tensor = norm(source())
    return x


def given_another_input_by_a_hook(norm: nn.Module) -> Tensor:
    """This one is noted: hooks are shown the input that the module was given in the end."""
    norm.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    x: Tensor = norm(source())
    return x


def a_view(norm: nn.Module) -> Tensor:
    x: Tensor = norm(source())
    return x[:, :]


def cast_before(norm: nn.Module) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        x: Tensor = norm(source().bfloat16().float())
    return x


def nothing_to_keep(norm: nn.Module) -> Tensor:
    x: Tensor = norm(source().detach())
    return x


def without_autograd(norm: nn.Module) -> Tensor:
    with torch.no_grad():
        x: Tensor = norm(source())
    return x


CASES = [
    in_place_afterwards,
    replaced_by_an_earlier_hook,
    replaced_by_a_later_hook,
    given_another_input_by_a_hook,
    a_view,
    cast_before,
    nothing_to_keep,
    without_autograd,
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_stale_note_is_never_used(case: Any) -> None:
    layer = nn.Linear(8, 4).requires_grad_(False)
    down, up = torch.randn(2, 8, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    x = case(frozen(nn.LayerNorm(8)))
    y = updated_linear(layer, FrozenCast(), x, [(None, Update(down, up, 1.0))])
    (found,) = torch.autograd.grad(y.sum(), [down])
    torch.testing.assert_close(found, up.sum(0)[:, None] * x.detach().sum(0))
    if case not in (given_another_input_by_a_hook, cast_before):
        assert recipe_of(x) is None


@pytest.mark.parametrize("what", ["input", "weight"])
def test_what_is_written_to_before_backward_is_an_error_as_in_torch(what: str) -> None:
    norm = frozen(nn.LayerNorm(8))
    given = source()
    down, up = torch.randn(2, 8, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    layer = nn.Linear(8, 4).requires_grad_(False)
    y = updated_linear(layer, FrozenCast(), norm(given), [(None, Update(down, up, 1.0))])
    with torch.no_grad():
        (given if what == "input" else norm.weight).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
