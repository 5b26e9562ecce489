"""Layers of a backbone that a strategy computes in its own way, and the arithmetic of scaling them.

A site function (kora/backbone/sites.py) adds to the output of a linear layer. A rewrite replaces
the layer itself, of any kind: it gets the frozen layer and the input, and returns the output.

Shapes: B batch, N tokens, I input width, O output width (channels).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.backbone.frozen_cast import autocast_type
from kora.backbone.recompute import is_plain_norm
from kora.backbone.sites import SiteLinear
from kora.backbone.vit import Backbone

__all__ = ["Rewritten", "frozen_layer", "plain_state", "rescaled", "rewrite"]

# From the frozen layer and its input to the output.
Rewrite = Callable[[nn.Module, Tensor], Tensor]


class Rewritten(nn.Module):
    """A frozen layer that is not linear, computed by a strategy; it has no weight of its own."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.rewrites: list[Rewrite] = []  # at most one; a list is not registered

    def forward(self, x: Tensor) -> Tensor:
        """What the rewrite makes of the input."""
        return self.rewrites[0](self.base, x)


def rewrite(backbone: Backbone, path: str, function: Rewrite) -> None:
    """Let `function` compute the layer at `path` (below timm's model).

    Raises:
        ValueError: If another strategy already does.
    """
    parent_path, _, last = path.rpartition(".")
    parent = backbone.model.get_submodule(parent_path)
    layer = getattr(parent, last)
    if not isinstance(layer, SiteLinear | Rewritten):
        layer = SiteLinear(layer) if isinstance(layer, nn.Linear) else Rewritten(layer)
        setattr(parent, last, layer)
    if layer.rewrites:
        raise ValueError(
            f"Layer '{path}' of {backbone.name} is already computed by another strategy, and two "
            "cannot share it. Give them different sites or blocks."
        )
    layer.rewrites.append(function)


def frozen_layer(backbone: Backbone, path: str) -> Any:
    """The layer of timm at `path`, also if it is wrapped."""
    layer = backbone.model.get_submodule(path)
    return layer.base if isinstance(layer, SiteLinear | Rewritten) else layer


def plain_state(backbone: Backbone) -> dict[str, Tensor]:
    """The frozen weights by timm's names, as if no layer were wrapped; the tensors are shared."""
    return {k.replace(".base.", "."): v for k, v in backbone.model.state_dict().items()}


def rescaled(layer: nn.Module, x: Tensor, scale_O: Tensor, shift_O: Tensor | None) -> Tensor:
    """scale * layer(x) + shift on the output's channels, keeping little for backward.

    Beyond what the frozen layer keeps anyway, the gradient of the scale needs:
    LayerNorm: nothing (scale and shift go into its own). A linear layer that widens: its input,
    as the product is with folded weights. Every other layer: its output.
    """
    if isinstance(layer, nn.Linear) and layer.out_features > layer.in_features:
        apply: Callable[..., Tensor] = _FoldedLinear.apply  # newer versions of torch type it
        return apply(x.to(autocast_type(x)), layer.weight, layer.bias, scale_O, shift_O)
    if is_plain_norm(layer):
        offset_O = _offset(layer.bias, scale_O, shift_O)
        return F.layer_norm(x, layer.normalized_shape, layer.weight * scale_O, offset_O, layer.eps)
    y: Tensor = layer(x)
    dims = (-1, 1, 1) if isinstance(layer, nn.Conv2d) else (-1,)
    scaled = y * scale_O.view(dims)
    return (scaled if shift_O is None else scaled + shift_O.view(dims)).to(y.dtype)


class _FoldedLinear(torch.autograd.Function):
    """scale * (W x + b) + shift = (scale W) x + (scale b + shift), with W and b frozen.

    Autograd by itself would keep the folded weight of every layer. This keeps the input and folds
    again; the scale's gradient is the row sums of (gradient^T x) * W, without another (B, N, O).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        scale_O: Tensor,
        shift_O: Tensor | None,
    ) -> Tensor:
        """(B, N, I) to (B, N, O)."""
        ctx.save_for_backward(x, weight_OI, bias_O, scale_O)
        offset_O = _offset(bias_O, scale_O, shift_O)
        offset_O = None if offset_O is None else offset_O.to(x.dtype)
        return F.linear(x, _fold(weight_OI, scale_O, x.dtype), offset_O)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, scale and shift."""
        (grad,) = grads
        x, weight_OI, bias_O, scale_O = ctx.saved_tensors
        need_x, _, _, _, need_shift = ctx.needs_input_grad
        grad_x = grad @ _fold(weight_OI, scale_O, grad.dtype) if need_x else None
        grad_MO = grad.reshape(-1, grad.shape[-1])
        grad_scale_O = ((grad_MO.T @ x.reshape(-1, x.shape[-1])) * weight_OI).sum(1)
        grad_shift_O = grad_MO.sum(0, dtype=scale_O.dtype)
        if bias_O is not None:
            grad_scale_O = grad_scale_O + bias_O * grad_shift_O
        return grad_x, None, None, grad_scale_O, grad_shift_O if need_shift else None


def _fold(weight_OI: Tensor, scale_O: Tensor, dtype: torch.dtype) -> Tensor:
    return (weight_OI * scale_O[:, None]).to(dtype)


def _offset(bias_O: Tensor | None, scale_O: Tensor, shift_O: Tensor | None) -> Tensor | None:
    if bias_O is None:
        return shift_O
    return bias_O * scale_O if shift_O is None else bias_O * scale_O + shift_O
