"""VPT: trained tokens that a block's attention sees in addition to those of the image.

Shapes: B images, N tokens of the image (CLS and registers first), K prompts, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.adapters.arguments import require_positive, require_probability
from kora.adapters.base import Strategy
from kora.backbone.sites import require_blocks
from kora.backbone.vit import Backbone

__all__ = ["VPT"]


class VPT(Strategy):
    """Visual prompt tuning: each block attends to K trained tokens and the N of the image.

    [Z_i, _] = block_i([Z_{i-1}, P_i]); shallow: one P before the first block, carried through all.
    Prompts are added after the position embedding, so they have no position. They come after the
    patches, which makes removing them a view; attention ignores order, so features equal those of
    the published place after CLS. They are removed before the final norm: a head, or a backbone
    that averages or pools its tokens, reads only those of the image (the paper's `image-pool`; for
    CLS there is no difference).

    It does not start as the frozen backbone: the first softmax already sees the prompts.
    Source: Jia et al. 2022, arXiv:2203.12119; start and dropout as in its code.

    Args:
        prompts: K, the number of prompts that a block gets.
        deep: New prompts before every block. False is VPT-shallow: only before the first block.
        dropout: Probability with which numbers of the prompts are dropped in training.
        blocks: Numbers of the blocks that see prompts; None means all. Shallow prompts enter at
            the first block, so `blocks` is for deep ones.

    Raises:
        ValueError: For no prompts, a dropout outside [0, 1), an unknown block, `blocks` with
            shallow prompts, or a backbone whose attention depends on the place of each token in
            the grid (rotary or relative positions: DINOv3, EVA02, BEiT).
    """

    size_argument = "prompts"

    def __init__(
        self,
        prompts: int = 10,
        *,
        deep: bool = True,
        dropout: float = 0.0,
        blocks: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        require_positive("VPT", prompts=prompts)
        require_probability("VPT", dropout=dropout)
        if not deep and blocks is not None:
            raise ValueError(
                f"VPT: blocks={list(blocks)} with deep=False. Shallow prompts enter at the first "
                "block and pass through all: use blocks=null, or deep=True."
            )
        self.prompts = prompts
        self.deep = deep
        self.dropout = dropout
        self.blocks = blocks
        self.tokens = nn.ModuleDict()
        # Shallow prompts are removed after the last block, counted from the end.
        self.needs_last_tokens = not deep

    @property
    def label(self) -> str:
        """`VPT`, or `VPT-shallow`."""
        return "VPT" if self.deep else "VPT-shallow"

    def attach(self, backbone: Backbone) -> None:
        """Hook the prompts in; (L, K, D) numbers, or (K, D) for shallow ones."""
        assert not self.tokens, "attached twice"
        chosen = require_blocks(backbone, self.blocks) if self.deep else [0]
        _refuse_known_positions(backbone)
        patch = backbone.model.patch_embed.patch_size
        for i in chosen:
            prompt = Prompt(self.prompts, backbone.width, patch=patch, dropout=self.dropout)
            self.tokens[f"b{i:02d}_prompts"] = prompt
            prompt.hook(backbone.model, i, deep=self.deep)


class Prompt(nn.Module):
    """The K prompts (K, D) that one block gets.

    They start uniform in +-sqrt(6 / (3 p q + D)) for patches of p by q pixels: Xavier's bound for
    the patch embedding (VPT's code).
    """

    def __init__(self, number: int, width: int, *, patch: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        bound = math.sqrt(6 / (3 * patch[0] * patch[1] + width))
        self.prompt_KD = nn.Parameter(torch.empty(number, width).uniform_(-bound, bound))

    def hook(self, model: Any, block: int, *, deep: bool) -> None:
        """Append before a block; remove after it (deep), or before the final norm (shallow)."""
        model.blocks[block].register_forward_pre_hook(self.append)
        if deep:
            model.blocks[block].register_forward_hook(self.remove)
        else:  # every level that a head reads passes through this norm
            model.norm.register_forward_pre_hook(self.remove_before)

    def append(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """(B, N, D) to (B, N + K, D)."""
        x, *others = inputs
        # x.shape, as len() would fix B in an exported graph
        tokens = self.prompt_KD.to(x.dtype).expand(x.shape[0], -1, -1)
        if self.dropout:
            tokens = F.dropout(tokens, self.dropout, self.training)
        return torch.cat((x, tokens), dim=1), *others

    def remove(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """(B, N + K, D) to (B, N, D)."""
        return output[:, : -len(self.prompt_KD)]

    def remove_before(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """(B, N + K, D) to (B, N, D), of the input."""
        x, *others = inputs
        return x[:, : -len(self.prompt_KD)], *others


def _refuse_known_positions(backbone: Backbone) -> None:
    """Refuse attention that fixes positions: run it once without storage, with an extra token."""
    with torch.device("meta"):
        probe = Prompt(1, backbone.width, patch=(1, 1), dropout=0.0)
    try:
        backbone.calls(lambda twin: probe.hook(twin, 0, deep=True))
    except RuntimeError as error:
        raise ValueError(
            f"VPT: the attention of {backbone.name} knows the place of each of its "
            f"{backbone.num_prefix_tokens + math.prod(backbone.grid)} tokens (rotary or relative "
            "positions), and a prompt has none. Use a vit, deit, dinov2, clip or siglip backbone, "
            "or another strategy (LoRA)."
        ) from error
