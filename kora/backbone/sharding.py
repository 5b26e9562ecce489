"""A frozen backbone in shards, and plain DDP for all that trains.

For a backbone too large for one device. Each block is sharded by FSDP2 and gathered only while it
computes; adapter and head are whole on every device, so gradients, optimiser and checkpoints are
those of `ddp`. (FSDP and ModelParallelStrategy of Lightning 2.6.6 shard all or nothing.)
"""

from __future__ import annotations

from typing import Any

from lightning import LightningModule
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from kora.backbone.sites import SiteLinear
from kora.backbone.vit import Backbone

__all__ = ["ShardedBackbone"]


class ShardedBackbone(DDPStrategy):
    """DDP with the blocks of the frozen backbone cut into one shard a device.

    Its options are those of `lightning.pytorch.strategies.DDPStrategy`. Needs torch 2.7 or newer.
    Source: `torch.distributed.fsdp.fully_shard` (FSDP2).

    Raises:
        ValueError: If the whole backbone trains, as in FullFineTune: nothing could be sharded.
    """

    def model_to_device(self) -> None:
        """Shard after the move to the device, and let DDP ignore what is sharded."""
        super().model_to_device()
        task: Any = self.lightning_module
        if getattr(task, "backbone", None) is not None:
            shard_blocks(task, self.root_device.type, self.world_size)


def shard_blocks(task: LightningModule, device: str, devices: int) -> None:
    """Shard the blocks of `task.backbone` over all devices; a second call changes nothing."""
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
    mesh = init_device_mesh(device, (devices,))
    for block in blocks:
        for module in block.modules():
            if isinstance(module, SiteLinear):
                module.cast.keeps = False  # a copy would stay whole after resharding
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=trained)
    sharded = [n for n, p in task.named_parameters() if isinstance(p, DTensor)]
    task._ddp_params_and_buffers_to_ignore = sharded  # type: ignore[assignment]  # DDP's own name
