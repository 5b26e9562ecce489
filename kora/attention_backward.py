"""The backward pass of attention in bfloat16 on a CPU, with few tokens: as plain matrix products.

torch's own (2.13) goes through the scores in small blocks, which for the tokens of one small image
takes two to three times as long as the products (benchmarks/attention_backward.py). The forward
pass stays torch's, and so does what is kept for backward: the scores are computed again, in
float32, as torch does.

Shapes: B images, H heads, N tokens, K width of a head.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["plain_attention_backward"]

_OPERATION = "_scaled_dot_product_flash_attention_for_cpu_backward"
_TOKENS = 160  # from 200 on torch's own takes no longer


@contextmanager
def plain_attention_backward(device: torch.device) -> Iterator[None]:
    """It is used within, where it is faster, and torch's own everywhere else and behind it.

    It needs `torch.library.get_kernel`; with an older torch nothing changes.
    """
    kernel_of = getattr(torch.library, "get_kernel", None)
    if device.type != "cpu" or kernel_of is None or not hasattr(torch.ops.aten, _OPERATION):
        yield
        return
    own = kernel_of(f"aten::{_OPERATION}", "CPU")

    def chosen(keys: Any, grad: Tensor, query: Tensor, *rest: Any, **named: Any) -> Any:
        key, value, _, _, dropout, causal = rest
        plain = (
            query.dtype == torch.bfloat16
            and max(query.shape[-2], key.shape[-2]) <= _TOKENS
            and not dropout
            and not causal
            and named.get("attn_mask") is None
        )
        if plain:
            return _gradients(grad, query, key, value, named.get("scale"))
        return own.call_boxed(keys, grad, query, *rest, **named)

    open_library: Any = torch.library.Library  # not typed
    library = open_library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators", UserWarning)
        library.impl(_OPERATION, chosen, "CPU", with_keyset=True)
    try:
        yield
    finally:
        library._destroy()


def _gradients(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, all (B, H, N, K)."""
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query.float() @ key.float().mT).mul_(factor)
    weights = torch.softmax(scores, -1).to(query.dtype)
    grad_value = weights.mT @ grad
    grad_scores = torch._softmax_backward_data(grad @ value.mT, weights, -1, query.dtype)
    return (
        (grad_scores @ key).mul_(factor),
        (grad_scores.mT @ query).mul_(factor),
        grad_value,
    )
