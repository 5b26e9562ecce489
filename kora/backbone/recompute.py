"""Inputs of linear layers that need not be kept for backward, as they are cheap to recompute.

The input of `qkv` and `fc1` is the output of a LayerNorm, that of `fc2` the output of GELU. Both
keep their own input for their own backward, so saving it too costs no memory, and backward
recomputes the layer's input from it.

A hook on the norm or activation attaches a note to its output tensor: how it was computed. A tensor
that replaces this one (by another hook, a cast, an operation in between) has no note, and is kept
as usual.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Recipe", "is_plain_norm", "note", "recipe_of"]

_NOTE = "_kora_recipe"
_BACKWARDS = {"NativeLayerNormBackward0", "GeluBackward0"}


class Recipe(NamedTuple):
    """How a tensor was computed: call it with `tensors`, or with what autograd saved of them."""

    tensors: tuple[Tensor | None, ...]  # input, weight, bias; the last two only of a norm
    shape: tuple[int, ...]  # that a norm normalises; empty for an activation
    eps: float
    approximate: str
    version: int  # of the output when it was noted

    def __call__(self, source: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Recompute the noted tensor."""
        if self.shape:
            return F.layer_norm(source, self.shape, weight, bias, self.eps)
        return F.gelu(source, approximate=self.approximate)


def is_plain_norm(module: nn.Module) -> TypeGuard[nn.LayerNorm]:
    """Whether this is torch's LayerNorm or timm's of that name.

    Subclasses under other names compute in another type or order.
    """
    return isinstance(module, nn.LayerNorm) and type(module).__name__ == "LayerNorm"


def note(module: nn.Module) -> None:
    """Let a plain norm or GELU note how its outputs are computed; once is enough."""
    if type(module) is nn.GELU or is_plain_norm(module):
        hooks = module._forward_hooks
        if _look not in hooks.values():
            module.register_forward_hook(_look)


def recipe_of(x: Tensor) -> Recipe | None:
    """How `x` can be computed again from what autograd keeps anyway; None if it cannot."""
    recipe: Recipe | None = getattr(x, _NOTE, None)
    return recipe if recipe is not None and recipe.version == x._version else None


def _look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    if torch.compiler.is_compiling() or not isinstance(output, Tensor) or len(inputs) != 1:
        return
    source = inputs[0]
    node = output.grad_fn
    if node is None or node.name() not in _BACKWARDS or source.grad_fn is None:
        return
    # Proof that it comes straight from this input: no other hook, and no cast, is in between.
    if node.next_functions[0][0] is not source.grad_fn:
        return
    tensors: tuple[Tensor | None, ...]
    if isinstance(module, nn.LayerNorm):
        tensors = (source, module.weight, module.bias)
        recipe = Recipe(tensors, tuple(module.normalized_shape), module.eps, "", output._version)
    else:
        assert isinstance(module, nn.GELU)
        recipe = Recipe((source, None, None), (), 0.0, module.approximate, output._version)
    setattr(output, _NOTE, recipe)
