"""GatedKoRA: a small network combines the corrections of q, k and v of a block, and adds to v.

Shapes: B images, N tokens, I input width, D width of q, of k and of v, R rank, C d_comp.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.adapters.arguments import require_effect, require_positive
from kora.adapters.base import Strategy
from kora.adapters.low_rank import LowRankDelta
from kora.backbone.sites import Site, find_sites, wrap
from kora.backbone.vit import Backbone

__all__ = ["GatedBlock", "GatedKoRA"]

_PARTS = ("q", "k", "v")


class GatedBlock(nn.Module):
    """d_q, d_k, d_v = alpha B A x each, and d_v + g * U gelu(W [d_q; d_k; d_v] + b_W) + b_U.

    The gate g is one number that starts at zero, so the block starts as LoRA on q, k and v.
    """

    def __init__(self, sites: Sequence[Site], *, rank: int, d_comp: int, alpha: float) -> None:
        super().__init__()
        self.deltas = nn.ModuleDict(
            {site.name: LowRankDelta(site, rank, alpha=alpha) for site in sites}
        )
        widths = [site.d_out for site in sites]
        self.compose = nn.Linear(sum(widths), d_comp)
        self.release = nn.Linear(d_comp, widths[-1])
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, I) to what is added to q, k and v, (B, N, 3 D)."""
        lows = [delta.alpha * delta.low(x) for delta in self._deltas()]
        parts = [delta.up(low) for delta, low in zip(self._deltas(), lows, strict=True)]
        # W d = (W B) low: the three corrections are not concatenated.
        columns = torch.split(self.compose.weight, [part.shape[-1] for part in parts], dim=1)
        pairs = zip(self._deltas(), lows, columns, strict=True)
        composed = sum(F.linear(low, column @ delta.up_OR) for delta, low, column in pairs)
        assert isinstance(composed, Tensor)
        released = self.release(F.gelu(composed + self.compose.bias))
        return torch.cat((*parts[:-1], parts[-1] + self.gate * released), dim=-1)

    def _deltas(self) -> list[LowRankDelta]:
        found = (self.deltas[name] for name in _PARTS)
        return [delta for delta in found if isinstance(delta, LowRankDelta)]


class GatedKoRA(Strategy):
    """LoRA on q, k and v, whose corrections are also combined in a small gated network per block.

    This is the form in the README of the paper's repository; the paper and its notebook describe
    another one (`KoRA`). Nothing is composed across blocks.
    Source: README of OnePunchMonk/KoRA (2025).

    Args:
        rank: R of A (R, I) and B (D, R).
        d_comp: C, the width of the small network.
        alpha: Multiplies each correction.
        blocks: Numbers of the adapted blocks; None means all.

    Raises:
        ValueError: For a rank or d_comp below 1, an alpha of 0, or a backbone that calls no fused
            qkv.
    """

    size_argument = "rank"
    needs_last_tokens = False
    sites = _PARTS

    def __init__(
        self,
        rank: int = 8,
        d_comp: int = 8,
        *,
        alpha: float = 1.0,
        blocks: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        require_positive("GatedKoRA", rank=rank, d_comp=d_comp)
        require_effect("GatedKoRA", alpha)
        self.rank = rank
        self.d_comp = d_comp
        self.alpha = alpha
        self.blocks = blocks
        self.gated = nn.ModuleDict()

    @property
    def label(self) -> str:
        """`KoRA-gated`."""
        return "KoRA-gated"

    def parts(self) -> dict[str, LowRankDelta]:
        """The corrections by block and part: `b03_q`."""
        found = {
            f"{key.partition('_')[0]}_{name}": delta
            for key, block in self.gated.items()
            if isinstance(block, GatedBlock)
            for name, delta in block.deltas.items()
        }
        return {key: delta for key, delta in found.items() if isinstance(delta, LowRankDelta)}

    def attach(self, backbone: Backbone) -> None:
        """Place the corrections and their networks."""
        assert not self.gated, "attached twice"
        parts = find_sites(backbone, _PARTS, blocks=self.blocks)
        for whole in find_sites(backbone, ["qkv"], blocks=self.blocks):
            sites = [site for site in parts if site.block == whole.block]
            block = GatedBlock(sites, rank=self.rank, d_comp=self.d_comp, alpha=self.alpha)
            self.gated[whole.key] = block
            wrap(backbone, whole, block)
