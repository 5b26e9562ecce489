"""What the tests of strategies share."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.adapters import Strategy
from kora.backbone.vit import Backbone
from kora.tasks import ClassificationTask
from tests.support.factory import labels_for
from tests.support.families import tiny
from tests.support.strategies import Entry

__all__ = ["fitting", "gradients", "kept_numbers", "loss_of", "rebuild"]


def loss_of(task: nn.Module, images: Tensor) -> Tensor:
    """Cross-entropy on (B, 3, H, W) images."""
    return F.cross_entropy(task(images).float(), labels_for(images))


def gradients(task: ClassificationTask, images: Tensor) -> tuple[float, dict[str, Tensor]]:
    """Loss with the penalty, and gradients of what trains where there are any."""
    task.zero_grad()
    loss, penalty = loss_of(task, images), task.adapter.penalty()
    loss = loss if penalty is None else loss + penalty
    loss.backward()
    return loss.item(), {
        n: p.grad.clone() for n, p in task.trainables().items() if p.grad is not None
    }


def fitting(entry: Entry, family: str) -> tuple[Strategy, Backbone]:
    """A strategy and a tiny backbone, with the settings that it needs there."""
    return entry(family, **entry.needs.get(family, {})), tiny(family)


def rebuild(record: Any) -> Any:
    """The object that a class path and its arguments name, as in a config."""
    if not isinstance(record, dict) or "class_path" not in record:
        return record
    module, _, name = record["class_path"].rpartition(".")
    arguments = {key: rebuild(value) for key, value in record.get("init_args", {}).items()}
    return getattr(importlib.import_module(module), name)(**arguments)


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
