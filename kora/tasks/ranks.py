"""Several processes: sharding is refused, and predictions are gathered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning import Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor

__all__ = ["in_one_list", "refuse_sharding"]

Batch = dict[str, Tensor]


def refuse_sharding(trainer: Trainer | None) -> None:
    """Refuse strategies that cut the model into shards.

    With them, Lightning 2.6.6 would save and load the whole model, with the frozen backbone and
    without the checks of our checkpoints. Under ModelParallelStrategy, a module that is not sharded
    itself trains without any exchange of gradients, so the processes drift apart silently.

    Raises:
        ValueError: for FSDP and ModelParallelStrategy.
    """
    strategy = None if trainer is None else trainer.strategy
    if isinstance(strategy, FSDPStrategy | ModelParallelStrategy):
        raise ValueError(
            f"trainer.strategy is {type(strategy).__name__}, which cuts the model into shards. "
            "KoRA trains small adapters on a frozen backbone that fits on one device, and "
            "keeps checkpoints without it, which sharding does not. Use trainer.strategy: ddp, "
            "or kora.sharding.ShardedBackbone if the backbone alone is too large."
        )


def in_one_list(batches: Sequence[Batch]) -> list[Batch]:
    """Gather the batches of all processes on the first; called on every process.

    Images with an `index` come in its order, as from one process: in one batch, or one by one if
    batches were padded to different sizes. The other processes get an empty list. A single process
    gets its batches as they are.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return list(batches)
    shares: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(list(batches), shares)
    together: list[Batch] = [batch for share in shares or [] for batch in share]
    if not together or not all("index" in batch for batch in together):
        return together
    if any(len({batch[key].shape[1:] for batch in together}) > 1 for key in together[0]):
        images = [
            {key: column[row : row + 1] for key, column in batch.items()}
            for batch in together
            for row in range(len(batch["index"]))
        ]
        return sorted(images, key=lambda image: int(image["index"]))
    order = torch.cat([batch["index"] for batch in together]).argsort(stable=True)
    return [{key: torch.cat([b[key] for b in together])[order] for key in together[0]}]
