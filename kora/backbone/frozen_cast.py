"""Frozen weights, cast once to the type of autocast.

Autocast itself caches the casts of a step only for tensors that train. It casts frozen ones anew in
every forward pass, and again when a block is recomputed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FrozenCast", "autocast_type"]


def autocast_type(x: Tensor) -> torch.dtype:
    """The type in which a matrix product of `x` is computed: its own, or that of autocast."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return x.dtype
    casts = x.is_floating_point() and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if casts else x.dtype


class FrozenCast:
    """Copies of a frozen linear layer's weight and bias in another type, made once.

    They are made again if a tensor was written to, moved or replaced. (torch does not notice writes
    through `weight.data`: call `clear` after these.) Copies and pickles of a FrozenCast are empty,
    as its content can always be made again.

    Args:
        keeps: False casts anew every time, for weights in shards: a copy would outlive its
            original.
    """

    def __init__(self, *, keeps: bool = True) -> None:
        self.keeps = keeps
        self._kept: dict[str, tuple[Any, Tensor]] = {}

    def __reduce__(self) -> Any:
        return _empty, (self.keeps,)

    def clear(self) -> None:
        """Forget the copies."""
        self._kept.clear()

    def tensors(self, layer: nn.Linear, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Weight (O, I) and bias (O,) of the layer in this type."""
        bias_O = layer.bias
        return (
            self._cast("weight", layer.weight, dtype),
            None if bias_O is None else self._cast("bias", bias_O, dtype),
        )

    def _cast(self, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        if tensor.dtype == dtype:
            return tensor
        if not self.keeps or tensor.requires_grad or tensor.is_meta or tensor.is_inference():
            return tensor.to(dtype)
        key = (dtype, tensor.device, tensor.data_ptr(), tensor.shape, tensor._version)
        found = self._kept.get(name)
        if found is None or found[0] != key:
            with torch.inference_mode(False), torch.no_grad():  # usable in training, wherever made
                found = self._kept[name] = (key, tensor.to(dtype))
        return found[1]


def _empty(keeps: bool) -> FrozenCast:
    return FrozenCast(keeps=keeps)
