"""Computes only the CLS token after the attention of the last block, for a head that reads CLS.

The attention needs every token, as CLS attends to all of them. Its output projection, the norm and
the MLP treat each token separately, and nothing reads those of the patches: this saves three
quarters of the block's matrix products, forward and backward.

Shapes: B images, N tokens, D width
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kora.backbone.vit import Backbone

__all__ = ["LastBlock"]


class LastBlock:
    """Within `with last_block:`, computes only token 0 after the attention of the last block.

    The pooled feature is the same within rounding, and the features have no patch tokens. Outside
    the `with`, nothing changes. timm's block adds its two branches to the incoming tokens. A branch
    with one token is added to all of them, which is right for token 0; the others are dropped at
    the end of the block.
    """

    def __init__(self, backbone: Backbone) -> None:
        assert self.fits(backbone)
        self.active = False
        block = backbone.model.blocks[-1]
        # The first hooks at these inputs, so that others see the one token too; the last one at the
        # end of the block, as adapters that remove their prompts count from the end. `attn.norm`
        # comes before `attn.proj`, and is mostly an identity. Merging (kora/tasks/merging.py) may
        # replace layers and norms; of these modules only norm2, which is here to save work.
        for module in (block.attn.norm, block.norm2, block.mlp):
            module.register_forward_pre_hook(self._enter, prepend=True)
        block.register_forward_hook(self._leave)

    @staticmethod
    def fits(backbone: Backbone) -> bool:
        """Whether timm's head reads only CLS, and the blocks are those that this was written for.

        Blocks that timm derives from these add other things in another order. Before timm 1.0.16,
        the attention had no norm and does not fit.
        """
        from timm.models.vision_transformer import Block, VisionTransformer

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
            and not model.grad_checkpointing  # it recomputes the block outside the `with`
        )

    def __enter__(self) -> None:
        self.active = True

    def __exit__(self, *exception: object) -> None:
        self.active = False

    def _enter(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
        """(B, N, D) to (B, 1, D)."""
        x, *others = inputs
        # A copy: a view would keep all tokens for backward, and products of strided rows are
        # computed differently with gradients than without.
        return (x[:, :1].contiguous() if self.active else x), *others

    def _leave(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """(B, N, D) to (B, 1, D)."""
        return output[:, :1] if self.active else output
