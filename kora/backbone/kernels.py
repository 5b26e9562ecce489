"""A frozen linear layer with low-rank updates as one operation of autograd.

Written out, W x + b + alpha B (A x) makes two more tensors of the output's width than the frozen
layer does, and keeps x. This operation adds to the output in place (in backward, to the gradient),
and recomputes x if that is cheap (kora/backbone/recompute.py).

Shapes: M rows (images times tokens), I input width, O output width, R rank, S outputs that an
update changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.backbone.frozen_cast import FrozenCast, autocast_type
from kora.backbone.recompute import Recipe, recipe_of

__all__ = ["Update", "is_frozen", "updated_linear"]

Rows = tuple[int, int]


class Update(NamedTuple):
    """alpha B A x, to be added to rows of a layer's output; A (R, I), B (O, R)."""

    down: Tensor
    up: Tensor
    alpha: float
    seen: Callable[[Tensor], None] | None = None  # called with A x (..., R), with its gradient
    dropout: float = 0.0  # of the numbers in x that A reads; the others grow by 1 / (1 - dropout)


class _Span(NamedTuple):
    """The parts of an update that are no tensors: rows `first` to `end` - 1, and two numbers."""

    first: int
    end: int
    alpha: float
    dropout: float


def is_frozen(layer: nn.Module) -> bool:
    """Whether this is a plain linear layer that does not train and has no hooks."""
    hooked = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks
    return (
        type(layer) is nn.Linear
        and not hooked
        and not any(parameter.requires_grad for parameter in layer.parameters())
    )


def updated_linear(
    layer: nn.Linear,
    cast: FrozenCast,
    x: Tensor,
    updates: Sequence[tuple[Rows | None, Update]] = (),
) -> Tensor:
    """W x + b + sum of alpha B A x on their rows: (..., I) to (..., O).

    Under autocast everything is in autocast's type, as with F.linear.
    """
    dtype = autocast_type(x)
    weight_OI, bias_O = cast.tensors(layer, dtype)
    recipe = recipe_of(x) if updates and torch.is_grad_enabled() else None
    x = x.to(dtype)
    if not updates:
        return F.linear(x, weight_OI, bias_O)
    whole = (0, layer.out_features)
    spans = tuple(_Span(*(rows or whole), u.alpha, u.dropout) for rows, u in updates)
    masks = tuple(keep_mask(_rows(x), u.dropout) if u.dropout else None for _, u in updates)
    pairs = [(update.down.to(dtype), update.up.to(dtype)) for _, update in updates]
    flat = [tensor for pair in pairs for tensor in pair]
    apply: Callable[..., tuple[Tensor, ...]] = _UpdatedLinear.apply
    y, *lows = apply(x, weight_OI, bias_O, recipe, spans, masks, *flat)
    for (_, update), low in zip(updates, lows, strict=True):
        if update.seen is not None:
            update.seen(low)
    return y


def keep_mask(x: Tensor, dropout: float) -> Tensor:
    """Which numbers of x stay, as bool of its shape: each with probability 1 - dropout.

    On a CPU it draws 16 random bits per number, so dropout is rounded to a multiple of 1 / 65536:
    torch's own draws take seven times as long there, longer than the layer's matrix product.
    """
    if x.device.type != "cpu":
        return torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - dropout)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    numbers = words.view(torch.int16)[: x.numel()].view(x.shape)
    return numbers >= min(round(dropout * 2**16), 2**16 - 1) - 2**15


class _UpdatedLinear(torch.autograd.Function):
    """All tensors but masks are of one type; W and b are frozen. Returns y and each A x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        recipe: Recipe | None,
        spans: tuple[_Span, ...],
        masks: tuple[Tensor | None, ...],
        *factors: Tensor,
    ) -> tuple[Tensor, ...]:
        """(..., I) to (..., O), and (..., R) for each update."""
        with _no_autocast(x):
            y = F.linear(x, weight_OI, bias_O)
            x_MI, y_MO = _rows(x), _rows(y)
            lows_MR = [
                _scaled(_masked(x_MI, mask) @ down_RI.T, span)
                for down_RI, mask, span in zip(factors[::2], masks, spans, strict=True)
            ]
            for low_MR, up_SR, span in zip(lows_MR, factors[1::2], spans, strict=True):
                y_MO[:, span.first : span.end].addmm_(low_MR, up_SR.T, alpha=span.alpha)
        ctx.set_materialize_grads(False)
        ctx.spans, ctx.recipe = spans, None
        kept: tuple[Tensor | None, ...] = (x,)
        if not any(ctx.needs_input_grad[6::2]):  # only the gradient of an A reads x
            kept = ()
        elif recipe is not None:
            kept = recipe.tensors
            ctx.recipe = recipe._replace(tensors=())  # only autograd holds tensors
        lows = [low_MR.view(*x.shape[:-1], low_MR.shape[-1]) for low_MR in lows_MR]
        ctx.save_for_backward(weight_OI, *factors, *lows, *masks, *kept)
        return y, *lows

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of x and of each A and B."""
        count = len(ctx.spans)
        weight_OI, *saved = ctx.saved_tensors
        factors, lows = saved[: 2 * count], saved[2 * count : 3 * count]
        masks, kept = saved[3 * count : 4 * count], saved[4 * count :]
        with _no_autocast(weight_OI):
            return _backward(ctx, grads[0], grads[1:], weight_OI, factors, lows, masks, kept)


def _backward(
    ctx: Any,
    grad: Tensor | None,
    grad_lows: Sequence[Tensor | None],
    weight_OI: Tensor,
    factors: Sequence[Tensor],
    lows: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    kept: Sequence[Tensor],
) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad
    grad_MO = None if grad is None else _rows(grad)
    back_MR = [
        _to_low(grad_MO, grad_low, up_SR, span)
        for grad_low, up_SR, span in zip(grad_lows, factors[1::2], ctx.spans, strict=True)
    ]
    grad_factors: list[Tensor | None] = []
    x_MI: Tensor | None = None
    for i, (span, mask) in enumerate(zip(ctx.spans, masks, strict=True)):
        back = back_MR[i]
        grad_down_RI = grad_up_SR = None
        if needs[6 + 2 * i] and back is not None:
            if x_MI is None:
                x = kept[0] if ctx.recipe is None else ctx.recipe(*kept).to(weight_OI.dtype)
                x_MI = _rows(x)
            grad_down_RI = back.T @ _masked(x_MI, mask)
        if needs[7 + 2 * i] and grad_MO is not None:
            grad_up_SR = (grad_MO[:, span.first : span.end].T @ _rows(lows[i])).mul_(span.alpha)
        grad_factors += [grad_down_RI, grad_up_SR]
    grad_x = None
    if needs[0] and not (grad_MO is None and all(back is None for back in back_MR)):
        grad_MI = None if grad_MO is None else grad_MO @ weight_OI
        for back, down_RI, mask in zip(back_MR, factors[::2], masks, strict=True):
            if back is not None and (grad_MI is None or mask is not None):
                own_MI = _masked(back @ down_RI, mask)
                grad_MI = own_MI if grad_MI is None else grad_MI.add_(own_MI)
            elif back is not None and grad_MI is not None:
                grad_MI = grad_MI.addmm_(back, down_RI)
        assert grad_MI is not None
        grad_x = grad_MI.view(*lows[0].shape[:-1], grad_MI.shape[-1])
    return grad_x, None, None, None, None, None, *grad_factors


def _to_low(
    grad_MO: Tensor | None,
    grad_low: Tensor | None,
    up_SR: Tensor,
    span: _Span,
) -> Tensor | None:
    """The gradient of A x (M, R), from the site and from what else has read it."""
    back_MR = None if grad_low is None else _rows(grad_low)
    if grad_MO is not None:
        own_MR = grad_MO[:, span.first : span.end] @ (span.alpha * up_SR)
        back_MR = own_MR if back_MR is None else own_MR + back_MR
    return None if back_MR is None else _scaled(back_MR, span)


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    # As uint8, since bool takes twice as long on a CPU.
    return x if mask is None else x * mask.view(torch.uint8)


def _scaled(low: Tensor, span: _Span) -> Tensor:
    """With dropout, scale A x up, so that its mean stays the same."""
    return low / (1 - span.dropout) if span.dropout else low


def _no_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Switch autocast off, as types are settled; the meta device has none."""
    kind = x.device.type
    known = torch.amp.is_autocast_available(kind)
    return torch.autocast(kind, enabled=False) if known else nullcontext()


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
