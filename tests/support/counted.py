"""What a training step costs in numbers that are the same on every machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["counted_forward", "counted_step", "without_numbers"]


def counted_step(module: nn.Module, loss: Callable[[], Tensor]) -> tuple[float, float]:
    """GFLOP of `loss` and its backward, and the MiB that are kept between the two.

    Floating-point operations are those of matrix products, by torch's counter, without those of
    fused attention on a CPU. Kept is what autograd saves beyond the parameters and buffers of the
    module, each storage once.
    """
    owned = {t.untyped_storage()._cdata for t in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # none may come in the place of another while we count

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in owned:
            kept[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    counter = _counter()
    with counter, saved_tensors_hooks(pack, lambda tensor: tensor):
        loss().backward()
    return counter.get_total_flops() / 1e9, sum(kept.values()) / 2**20


@contextmanager
def without_numbers(module: nn.Module) -> Iterator[None]:
    """While it lasts, tensors have shapes alone, and `module` has for good: counting takes no time.

    Operations are those of the tensors' own device. Fails where something depends on a number.
    """
    with FakeTensorMode() as mode:
        for part in module.modules():
            for tensors in (part._parameters, part._buffers):
                for name, tensor in tensors.items():
                    tensors[name] = None if tensor is None else mode.from_tensor(tensor)
        yield


def counted_forward(run: Callable[[], object]) -> float:
    """GFLOP of a pass without gradients."""
    counter = _counter()
    with torch.no_grad(), counter:
        run()
    return counter.get_total_flops() / 1e9


def _counter() -> FlopCounterMode:
    # By itself torch counts only the products that make a new tensor, and attention on a CPU in
    # some versions alone (in 2.15, not in 2.13).
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return FlopCounterMode(
        display=False,
        custom_mapping={
            torch.ops.aten.addmm_: _product_in_place,
            attention: _nothing,
            backward: _nothing,
        },
    )


def _product_in_place(to: Any, left: Any, right: Any, **_: Any) -> int:
    return 2 * int(left[0]) * int(left[1]) * int(right[1])


def _nothing(*_: Any, **__: Any) -> int:
    return 0
