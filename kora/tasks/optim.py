"""Parameter groups and learning-rate schedule of the optimiser. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

__all__ = ["Schedule", "fuse_on_cpu", "parameter_groups", "schedule_factor"]

Schedule = Literal["cosine", "constant"]


def parameter_groups(
    trainables: Mapping[str, nn.Parameter],
    *,
    head_lr: float | None = None,
    undecayed: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Groups for any torch or timm optimiser, from the names and tensors that train.

    Not decayed are tensors with fewer than two dimensions (biases, norms, gates, scales), and
    those in `undecayed` (as timm names them: position embeddings, CLS and register tokens). The
    head (`head.*`) has its own learning rate if one is given. Groups are named `adapter` or `head`.
    """
    groups: list[dict[str, Any]] = []
    for head in (False, True):
        for decay in (True, False):
            members = [
                parameter
                for name, parameter in trainables.items()
                if name.startswith("head.") == head
                and (parameter.ndim > 1 and name not in undecayed) == decay
            ]
            if not members:
                continue
            group: dict[str, Any] = {"params": members, "name": "head" if head else "adapter"}
            if not decay:
                group["weight_decay"] = 0.0
            if head and head_lr is not None:
                group["lr"] = head_lr
            groups.append(group)
    return groups


def fuse_on_cpu(optimizer: Optimizer) -> Optimizer:
    """Use the fused step on a CPU if the options of the optimiser leave the choice to torch.

    By default, torch loops over tensors on a CPU. A strategy has hundreds of small ones, and the
    loop takes four times as long. Optimisers without a fused step, and tensors on other devices,
    stay as they are. The option is set on the groups, as Lightning clips no gradients for an
    optimiser that was made with `fused=True`.
    """
    for group in optimizer.param_groups:
        choices = [group.get(key, False) for key in ("fused", "foreach", "capturable")]
        on_cpu = all(tensor.is_cpu for tensor in group["params"])
        if on_cpu and choices == [None, None, False] and not group.get("differentiable"):
            group["fused"] = True
    return optimizer


def schedule_factor(
    schedule: Schedule, *, total_steps: int, warmup_fraction: float
) -> Callable[[int], float]:
    """Factor on the learning rate at each optimiser step: linear warm-up, then cosine to zero.

    The first step already moves (factor 1 / warm-up steps), so that a run of one step trains.
    """
    warmup = max(1, round(warmup_fraction * total_steps)) if warmup_fraction > 0 else 0

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if schedule == "constant":
            return 1.0
        progress = (step - warmup) / max(1, total_steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return factor
