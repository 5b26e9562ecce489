"""Fold an adapter into the weights during evaluation, where it then costs nothing.

Plain layers replace the wrapped layers of the backbone, which are put back afterwards. No tensor
of the model is written to.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from kora.adapters import Strategy
from kora.backbone.rewrites import Rewritten, plain_state
from kora.backbone.sites import SiteLinear
from kora.backbone.vit import Backbone

__all__ = ["Merged", "MergedEvaluation", "merged"]


class Merged:
    """Plain layers in the place of wrapped ones, until `undo`."""

    def __init__(self, backbone: Backbone, adapter: Strategy) -> None:
        self._model = backbone.model
        self._taken: dict[str, nn.Module] = {}
        for path, layer in _plain_layers(backbone, adapter).items():
            taken = self._taken[path] = self._model.get_submodule(path)
            layer._forward_pre_hooks = taken._forward_pre_hooks  # keep hooks on its input
            self._put(path, layer)

    @property
    def layers(self) -> int:
        """How many layers are plain now; 0 if the adapter cannot be folded in exactly."""
        return len(self._taken)

    def undo(self) -> None:
        """Put the wrapped layers back."""
        for path, layer in self._taken.items():
            self._put(path, layer)
        self._taken = {}

    def _put(self, path: str, layer: nn.Module) -> None:
        parent, _, name = path.rpartition(".")
        setattr(self._model.get_submodule(parent), name, layer)


@contextmanager
def merged(backbone: Backbone, adapter: Strategy) -> Iterator[Merged]:
    """`Merged` within a `with` block."""
    folded = Merged(backbone, adapter)
    try:
        yield folded
    finally:
        folded.undo()


class MergedEvaluation(Callback):
    """Merges the adapter of a task during a test or a prediction.

    Not in half precision, where small updates vanish in the sum; nor in a compiled task, which
    would have to be compiled again.
    """

    def __init__(self) -> None:
        self._merged: Merged | None = None

    def _begin(self, trainer: Trainer, module: Any) -> None:
        self._end()
        if trainer.precision in ("32-true", "64-true") and not module.compile_module:
            self._merged = Merged(module.backbone, module.adapter)

    def _end(self, *args: Any) -> None:
        if self._merged is not None:
            self._merged.undo()
            self._merged = None

    on_test_start: Any = _begin
    on_predict_start: Any = _begin
    on_test_end: Any = _end
    on_predict_end: Any = _end
    on_exception: Any = _end


def _plain_layers(backbone: Backbone, adapter: Strategy) -> dict[str, nn.Module]:
    """By path, a plain layer for each wrapped one; empty if that would not be exact."""
    if not _is_exact(backbone):
        return {}
    try:
        state = adapter.merged(backbone)
    except ValueError:  # it cannot be folded into weights
        return {}
    frozen = plain_state(backbone)
    wrapped = {
        path: module
        for path, module in backbone.model.named_modules()
        if isinstance(module, SiteLinear | Rewritten)
    }
    changed = {key for key, one in state.items() if one.data_ptr() != frozen[key].data_ptr()}
    if {key.rpartition(".")[0] for key in changed} - wrapped.keys():
        return {}  # the adapter changes a layer that is not wrapped
    return {
        path: _with_weights(module.base, state[f"{path}.weight"], state.get(f"{path}.bias"))
        for path, module in wrapped.items()
    }


def _is_exact(backbone: Backbone) -> bool:
    """Whether W + alpha B A keeps small updates after rounding.

    Half precision and products in TF32 lose them; of sharded weights, only a part is here.
    """
    weights = [p for p in backbone.model.parameters() if p.is_floating_point()]
    device = weights[0].device.type
    known = torch.amp.is_autocast_available(device)
    if known and torch.is_autocast_enabled(device):
        return False
    if torch.get_float32_matmul_precision() != "highest":
        return False
    plain = (nn.Parameter, Tensor)
    return all(type(p) in plain and p.dtype in (torch.float32, torch.float64) for p in weights)


def _with_weights(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A layer like this one with other weights."""
    plain = copy.copy(layer)
    plain._parameters = dict(plain._parameters)  # the copy would share it
    plain.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return plain
