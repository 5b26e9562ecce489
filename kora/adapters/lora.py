"""LoRA: an independent low-rank correction at every site."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kora.adapters.arguments import require_effect, require_positive, require_probability
from kora.adapters.base import Strategy, first_block
from kora.adapters.low_rank import LowRankDelta
from kora.backbone.rewrites import plain_state
from kora.backbone.sites import ALL_SITES, find_sites, wrap
from kora.backbone.vit import Backbone

__all__ = ["LoRA"]


class LoRA(Strategy):
    """h = W0 x + alpha * B A x at every site of every block (KoRA paper, equation 1).

    Source: Hu et al. 2021, arXiv:2106.09685.

    Args:
        rank: Inner width R of A (R, d_in) and B (d_out, R).
        alpha: Multiplies B A x directly; peft's `lora_alpha` is alpha * rank.
        dropout: Probability with which inputs of A are dropped in training.
        sites: Any of `qkv`, `q`, `k`, `v`, `proj`, `fc1`, `fc2` (see kora/backbone/sites.py). `q`,
            `k` and `v` are row slices of the fused layer: it stays one matrix product.
        blocks: Numbers of the adapted blocks; None means all.
        allow_dead_sites: Accept sites that are not used at all (the published protocol adapts
            timm's classifier), but never layers whose weight forward reads without calling them.

    Raises:
        ValueError: For a rank below 1 or above the layer's, an alpha of 0, an unknown or dead site,
            or a dropout outside [0, 1).
    """

    size_argument = "rank"
    needs_last_tokens = False

    def __init__(
        self,
        rank: int = 8,
        alpha: float = 1.0,
        *,
        dropout: float = 0.0,
        sites: Sequence[str] = ALL_SITES,
        blocks: Sequence[int] | None = None,
        allow_dead_sites: bool = False,
    ) -> None:
        super().__init__()
        name = type(self).__name__  # or that of DoRA
        require_positive(name, rank=rank)
        require_effect(name, alpha)
        require_probability(name, dropout=dropout)
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.sites = sites
        self.blocks = blocks
        self.allow_dead_sites = allow_dead_sites
        self.deltas = nn.ModuleDict()

    @property
    def label(self) -> str:
        """`LoRA`, or `LoRA-qv` and the like if only parts of the attention's input are adapted."""
        parts = [site for site in ("q", "k", "v") if site in self.sites]
        return type(self).__name__ + f"-{''.join(parts)}" * (len(parts) == len(self.sites))

    def attach(self, backbone: Backbone) -> None:
        """Wrap the sites."""
        assert not self.deltas, "attached twice"
        for site in find_sites(
            backbone, self.sites, blocks=self.blocks, allow_dead_sites=self.allow_dead_sites
        ):
            delta = LowRankDelta(site, self.rank, alpha=self.alpha, dropout=self.dropout)
            self.deltas[site.key] = delta
            wrap(backbone, site, delta, delta.update)

    def untouched_blocks(self) -> int:
        """Those before its first site."""
        return first_block(self.deltas)

    @torch.no_grad()
    def merged(self, backbone: Backbone) -> dict[str, Tensor]:
        """Weights of timm's model with each site's correction added to its rows."""
        state = plain_state(backbone)
        for site in find_sites(
            backbone, self.sites, blocks=self.blocks, allow_dead_sites=self.allow_dead_sites
        ):
            delta, key = self.deltas[site.key], f"{site.path}.weight"
            assert isinstance(delta, LowRankDelta)
            first, end = site.rows or (0, site.d_out)
            frozen_OI = state[key]
            rows = (frozen_OI[:first], delta.folded(frozen_OI[first:end]), frozen_OI[end:])
            state[key] = torch.cat(rows)
        return state
