"""Of the last block, only what is read: behind its attention, a head on CLS needs the CLS token.

The attention needs every token, as CLS looks at all of them. Its output projection, the norm and
the MLP behind it treat each token by itself, and nobody reads those of the patches: three quarters
of the block's matrix products, forward and backward.

Shapes: B images, N tokens, D width
"""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from kora.backbone.vit import Backbone

__all__ = ["LastBlock"]


class LastBlock:
    """Within `with last_block:`, behind the attention of the last block token 0 alone is computed.

    The pooled feature is then the same within rounding, and the features have no patch tokens.
    Outside of it nothing is changed. timm's block adds its two branches to the tokens that came
    in; where a branch has one token, this adds it to all of them, which is right for token 0, and
    all others are dropped at the end of the block.
    """

    def __init__(self, backbone: Backbone) -> None:
        assert self.fits(backbone)
        self.active = False
        block = backbone.model.blocks[-1]
        # First, so that what looks at these inputs sees the one token too; at the end of the block
        # last, as adapters that take their prompts away count from the end. `attn.norm` stands
        # before `attn.proj`, and is mostly an identity. Layers and norms may be replaced by merged
        # ones (kora/tasks/merging.py), these modules are not, but for norm2, there for a gain.
        for module in (block.attn.norm, block.norm2, block.mlp):
            module.register_forward_pre_hook(self._enter, prepend=True)
        block.register_forward_hook(self._leave)

    @staticmethod
    def fits(backbone: Backbone) -> bool:
        """Whether its head reads CLS alone, and its blocks are those that this was written for.

        Blocks of timm that are derived from these add other things in another order. Before 1.0.16
        its attention had no norm, and is left as it is.
        """
        model = backbone.model
        attention = getattr(model.blocks[-1], "attn", None)
        return (
            type(model) is VisionTransformer
            and type(model.blocks[-1]) is Block
            and type(attention).__name__ == "Attention"  # it has moved between files of timm
            and hasattr(attention, "norm")
            and model.attn_pool is None
            and model.global_pool == "token"
            and backbone.has_cls
            and not model.grad_checkpointing  # it computes the block anew outside of the `with`
        )

    def __enter__(self) -> None:
        self.active = True

    def __exit__(self, *exception: object) -> None:
        self.active = False

    def _enter(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
        """(B, N, D) to (B, 1, D)."""
        x, *others = inputs
        # A copy: a view would keep all tokens for backward, and products of strided rows take
        # another way with gradients than without.
        return (x[:, :1].contiguous() if self.active else x), *others

    def _leave(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """(B, N, D) to (B, 1, D)."""
        return output[:, :1] if self.active else output
