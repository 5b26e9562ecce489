"""Predictions of several processes, brought together on the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["in_one_list"]

Batch = dict[str, Tensor]


def in_one_list(batches: Sequence[Batch]) -> list[Batch]:
    """The batches of all processes, on the first of them; called on every one.

    Images that have an `index` come in its order, as from one process. The others get an empty
    list. Without further processes, the batches as they are.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return list(batches)
    shares: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(list(batches), shares)
    together: list[Batch] = [batch for share in shares or [] for batch in share]
    if not together or not all("index" in batch for batch in together):
        return together
    order = torch.cat([batch["index"] for batch in together]).argsort(stable=True)
    return [{key: torch.cat([b[key] for b in together])[order] for key in together[0]}]
