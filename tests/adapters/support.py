"""What the tests of several strategies look at."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["kept_numbers"]


def kept_numbers(forward: Callable[[], Tensor], *, besides: list[Tensor]) -> int:
    """How many numbers autograd keeps for backward, `besides` and each storage counted once."""
    own = {tensor.untyped_storage().data_ptr() for tensor in besides}
    kept: dict[int, int] = {}

    def look(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):
        output = forward()  # alive to the end, so that no address is used twice
    assert output.requires_grad
    return sum(kept.values())
