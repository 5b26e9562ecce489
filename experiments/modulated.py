"""LoRA whose corrections are scaled by what adapters have seen: their own, or earlier ones too.

Shapes: B images, N tokens, I input width, O output width, R rank, C d_comp, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.adapters.arguments import require_choice, require_effect, require_positive
from kora.adapters.base import Strategy, first_block
from kora.backbone.sites import ALL_SITES, find_sites, wrap
from kora.backbone.vit import Backbone

__all__ = ["ModulatedLoRA"]

Hears = Literal["earlier", "own", "nothing"]
Per = Literal["image", "token"]


class ModulatedLoRA(Strategy):
    """y = W0 x + alpha * B (s(c) * A x): an image, or a token, scales each correction.

    Every site sends p = P norm(A x) (C), of the mean over the tokens or of each token. It hears c,
    and scales its R numbers by s = w + W norm(c), where w starts at 1 and W at zero, so it starts
    as LoRA. norm is LayerNorm without parameters.

    * `hears: earlier`: c is the sum of p of this site and of all before it.
    * `hears: own`: c is its own p. This is the deaf twin: the same parameters, no communication.
    * `hears: nothing`: c is zero, so s = w.

    Sources: h + B (s * A x) with s of the image is the hypothesis of docs/research/composition.md;
    a bank of B over layers, with routing, is that of Lily (Findings of ACL 2025).

    Args:
        rank: R of A (R, I) and B (O, R).
        alpha: Multiplies the corrections.
        d_comp: C, the width of p and c.
        hears: What scales a correction.
        per: One c for each image, or for each token.
        shared: One A and B for the same site of all blocks; w, W and P remain each block's own.
        experts: If not 0, the same site of all blocks shares E matrices B_e, and a softmax over E
            numbers of w + W norm(c) weighs them: B = sum_e g_e B_e. w starts at random then.
        sites: As in LoRA.
        blocks: Numbers of the adapted blocks; negative ones count from the end; None means all.

    Raises:
        ValueError: For a rank or d_comp below 1, an alpha of 0, an unknown choice, or an unknown or
            dead site.
    """

    size_argument = "rank"

    def __init__(
        self, rank: int = 8, alpha: float = 1.0, *, d_comp: int = 16, hears: Hears = "earlier",
        per: Per = "image", shared: bool = False, experts: int = 0,
        sites: Sequence[str] = ALL_SITES, blocks: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        require_positive("ModulatedLoRA", rank=rank, d_comp=d_comp)
        require_effect("ModulatedLoRA", alpha)
        require_choice("ModulatedLoRA", "hears", hears, get_args(Hears))
        require_choice("ModulatedLoRA", "per", per, get_args(Per))
        self.rank = rank
        self.alpha = alpha
        self.d_comp = d_comp
        self.hears = hears
        self.per = per
        self.shared = shared
        self.experts = experts
        self.sites = sites
        self.blocks = blocks
        self.downs, self.ups = nn.ParameterDict(), nn.ParameterDict()
        self.sends, self.scales, self.starts = (nn.ParameterDict() for _ in range(3))
        self._heard: dict[str, Tensor] = {}  # p of each site that this pass has reached

    @property
    def label(self) -> str:
        """Such as `LoRA-modulated-image`, `LoRA-routed-image-own`, `LoRA-shared-token-nothing`."""
        kind = "routed" if self.experts else "shared" if self.shared else "modulated"
        return f"LoRA-{kind}-{self.per}" + f"-{self.hears}" * (self.hears != "earlier")

    def attach(self, backbone: Backbone) -> None:
        """A, B, P, w and W of every site."""
        assert not self.downs, "attached twice"
        found = find_sites(backbone, self.sites, blocks=self.blocks)
        for number, site in enumerate(found):
            of_a = site.name if self.shared else site.key
            of_b = site.name if self.shared or self.experts else site.key
            if of_a not in self.downs:
                self.downs[of_a] = nn.Parameter(torch.empty(self.rank, site.d_in))
                nn.init.kaiming_uniform_(self.downs[of_a], a=math.sqrt(5))
            if of_b not in self.ups:
                banks = max(self.experts, 1)
                self.ups[of_b] = nn.Parameter(torch.zeros(site.d_out, banks * self.rank))
            width = self.experts or self.rank
            start = torch.randn(width) if self.experts else torch.ones(width)
            self.starts[site.key] = nn.Parameter(start)
            if self.hears != "nothing":
                self.sends[site.key] = nn.Parameter(torch.empty(self.d_comp, self.rank))
                nn.init.kaiming_uniform_(self.sends[site.key], a=math.sqrt(5))
                self.scales[site.key] = nn.Parameter(torch.zeros(width, self.d_comp))
            earlier = [one.key for one in found[:number]]
            wrap(backbone, site, partial(self._correction, site.key, of_a, of_b, earlier))

    def untouched_blocks(self) -> int:
        """Those before its first site."""
        return first_block(self.starts)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_heard": {}}  # a copy has seen no batch

    def _correction(
        self, key: str, of_a: str, of_b: str, earlier: Sequence[str], x: Tensor
    ) -> Tensor:
        """(B, N, I) to (B, N, O)."""
        low_BNR = self.alpha * F.linear(x, self.downs[of_a])
        scale = self.starts[key]
        if self.hears != "nothing":
            seen = low_BNR.mean(dim=1, keepdim=True) if self.per == "image" else low_BNR
            sent = F.linear(F.layer_norm(seen, seen.shape[-1:]), self.sends[key])  # (B, 1 or N, C)
            composed = sent
            if self.hears == "earlier":
                self._heard[key] = sent
                composed = sent + sum(self._heard[one] for one in earlier)
            composed = F.layer_norm(composed, composed.shape[-1:])
            scale = scale + F.linear(composed, self.scales[key])
        if not self.experts:
            return F.linear(scale * low_BNR, self.ups[of_b])
        gates = torch.softmax(scale, dim=-1)[..., None]  # (..., E, 1)
        return F.linear((gates * low_BNR[..., None, :]).flatten(-2), self.ups[of_b])
