"""A frozen backbone in shards, and plain DDP for all that trains.

For a backbone too large for one device. Each block is sharded by FSDP2 and gathered only while it
computes; adapter and head are whole on every device, so gradients, optimiser and checkpoints are
those of `ddp`. (FSDP and ModelParallelStrategy of Lightning 2.6.6 shard all or nothing.)
"""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from kora.backbone.rewrites import Rewritten
from kora.backbone.sites import SiteLinear
from kora.backbone.vit import Backbone
from kora.console.say import say

__all__ = ["ShardedBackbone"]


class ShardedBackbone(DDPStrategy):
    """DDP with the blocks of the frozen backbone cut into one shard a device.

    On several nodes each has all shards (HSDP): blocks are gathered within a node, never over the
    network. A device holds its shards and one whole block at a time, also while they are made. With
    mixed precision the shards have the type in which autocast computes. A backbone of a local
    `.safetensors` file is read block by block; the processes of a machine share its pages.
    Says so if the whole backbone would take less than half of a GPU: then `ddp` is faster.

    Its options are those of `lightning.pytorch.strategies.DDPStrategy`. Needs torch 2.7 or newer.
    Source: `torch.distributed.fsdp.fully_shard` (FSDP2).

    Raises:
        ValueError: If the whole backbone trains, as in FullFineTune: nothing could be sharded.
    """

    def model_to_device(self) -> None:
        """Shard the blocks one by one from the CPU, then move the rest; DDP ignores the shards."""
        task: Any = self.lightning_module
        if getattr(task, "backbone", None) is not None:
            shape = (self.num_nodes, self.world_size // self.num_nodes)
            half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
            dtype = half.get(str(self.precision_plugin.precision), torch.float32)
            shard_blocks(task, self.root_device.type, shape, dtype)
        super().model_to_device()
        if self.root_device.type == "cuda" and self.is_global_zero:
            total = torch.cuda.get_device_properties(self.root_device).total_memory
            hint = not_needed(task, total)
            if hint is not None:
                say(hint)


def not_needed(task: LightningModule, memory: int) -> str | None:
    """Why the backbone need not be in shards on a device with so many bytes; None if it may."""
    backbone: Any = task.backbone
    whole = sum(p.numel() * p.element_size() for p in backbone.parameters())
    if whole > memory / 2:
        return None
    return (
        f"the frozen backbone takes {whole / 2**30:.1f} of {memory / 2**30:.0f} GiB on each "
        "device. It fits whole: trainer.strategy: ddp is faster, as it gathers nothing."
    )


def shard_blocks(
    task: LightningModule, device: str, shape: tuple[int, int], dtype: torch.dtype = torch.float32
) -> None:
    """Shard the blocks of `task.backbone`; a second call changes nothing.

    Args:
        task: Its weights may still be on the CPU, or on disk.
        device: Kind of the devices that get the shards.
        shape: Nodes, and devices of each.
        dtype: Of the blocks' matrices: the type in which autocast computes.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard
    from torch.distributed.tensor import DTensor

    backbone: Any = task.backbone
    assert isinstance(backbone, Backbone)
    blocks: list[nn.Module] = list(backbone.model.blocks)
    if isinstance(blocks[0], FSDPModule):
        return
    trained = {p for p in backbone.model.parameters() if p.requires_grad}
    if trained.issuperset(backbone.model.blocks.parameters()):
        raise ValueError(
            "trainer.strategy is ShardedBackbone, and the whole backbone trains. It shards what is "
            "frozen: use trainer.strategy: ddp."
        )
    _ = backbone.sha256  # hash the whole weights; no process has them afterwards
    nodes, devices = shape
    if nodes == 1:
        mesh = init_device_mesh(device, (devices,))
    else:
        mesh = init_device_mesh(device, shape, mesh_dim_names=("nodes", "devices"))
    for block in blocks:
        for module in block.modules():
            if isinstance(module, SiteLinear):
                module.cast.keeps = False  # a copy would stay whole after resharding
        _hold(block, dtype, but=trained)
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=trained)
    for part in backbone.model.children():
        if part is not backbone.model.blocks:
            _hold(part, torch.float32, but=trained)
    sharded = [n for n, p in task.named_parameters() if isinstance(p, DTensor)]
    task._ddp_params_and_buffers_to_ignore = sharded  # type: ignore[assignment]  # DDP's own name


def _hold(module: nn.Module, dtype: torch.dtype, *, but: set[nn.Parameter]) -> None:
    """Give the frozen matrices of linear layers memory of their own, in this type.

    Those that a strategy rewrites get float32: it computes with the weight itself.
    """
    for part in module.modules():
        rewritten = isinstance(part, SiteLinear | Rewritten) and part.rewrites
        for layer in part.children():
            if type(layer) is nn.Linear and layer.weight not in but:
                kept = torch.float32 if rewritten else dtype
                layer.weight.data = layer.weight.data.to(kept, copy=True)
