"""DoRA: LoRA changes the direction of each row of a weight; its length is trained separately.

Shapes: B batch, N tokens, I input width, O output width (rows), R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.adapters.lora import LoRA
from kora.adapters.low_rank import LowRankDelta
from kora.backbone.frozen_cast import autocast_type
from kora.backbone.rewrites import frozen_layer, rescaled, rewrite
from kora.backbone.sites import ALL_SITES, Site, find_sites
from kora.backbone.vit import Backbone

__all__ = ["DoRA"]


class DoRA(LoRA):
    """h = m * (W0 + alpha B A) x / ||W0 + alpha B A|| + b, with one norm and one m per row.

    m starts at ||W0||, so step 0 equals the frozen backbone. Backward treats the norm as a constant
    (section 4.3 of the paper). `q`, `k` and `v` are rows of the fused layer.
    Source: Liu et al. 2024, arXiv:2402.09353, equation 5.

    Args:
        rank: Inner width R of A (R, d_in) and B (d_out, R).
        alpha: Multiplies B A directly; peft's `lora_alpha` is alpha * rank.
        dropout: Probability with which inputs of A are dropped in training. W0 sees all inputs
            (in peft, the part of W0 x that m adds is also computed from dropped inputs).
        sites: See LoRA.
        blocks: Numbers of the adapted blocks; None means all.

    Raises:
        ValueError: As LoRA, and if another strategy computes the same layer.
    """

    def __init__(
        self,
        rank: int = 8,
        alpha: float = 1.0,
        *,
        dropout: float = 0.0,
        sites: Sequence[str] = ALL_SITES,
        blocks: Sequence[int] | None = None,
    ) -> None:
        super().__init__(rank, alpha, dropout=dropout, sites=sites, blocks=blocks)

    def attach(self, backbone: Backbone) -> None:
        """Rewrite the layers that have sites."""
        assert not self.deltas, "attached twice"
        by_layer: dict[str, list[Direction]] = {}
        for site in find_sites(backbone, self.sites, blocks=self.blocks):
            delta = Direction(
                site,
                self.rank,
                alpha=self.alpha,
                dropout=self.dropout,
                weight_OI=frozen_layer(backbone, site.path).weight,
            )
            self.deltas[site.key] = delta
            by_layer.setdefault(site.path, []).append(delta)
        for path, deltas in by_layer.items():
            rewrite(backbone, path, DirectedLinear(deltas))


class Direction(LowRankDelta):
    """A low-rank correction with a length m (O,) for each row of the corrected weight."""

    def __init__(self, site: Site, rank: int, *, weight_OI: Tensor, **options: Any) -> None:
        super().__init__(site, rank, **options)
        self.rows = (0, site.d_out) if site.rows is None else site.rows
        # B is zero, so this is the norm of W alone; A and B need no storage.
        rows_OI = weight_OI[slice(*self.rows)].detach().float()
        square_O = torch.linalg.vector_norm(rows_OI, dim=1).square()
        self.magnitude_O = nn.Parameter(square_O.clamp_min(1e-12).sqrt())

    @torch.no_grad()
    def norm(self, weight_OI: Tensor) -> Tensor:
        """||W + alpha B A|| of each row (O,), without making the (O, I) sum.

        ||w + a b A||^2 = ||w||^2 + 2 a b (A w) + a^2 b (A A^T) b^T for rows w of W and b of B.
        """
        with torch.autocast(weight_OI.device.type, enabled=False):
            # Squares lose half of their digits: float32 even if the model has less precision.
            weight_OI, down_RI = weight_OI.float(), self.down_RI.float()
            up_OR = self.alpha * self.up_OR.float()
            square_O: Tensor = torch.linalg.vector_norm(weight_OI, dim=1).square()
            cross_OR = weight_OI @ down_RI.T
            square_O += (up_OR * (2 * cross_OR + up_OR @ (down_RI @ down_RI.T))).sum(1)
            return square_O.clamp_min(1e-12).sqrt()  # a row of zeros stays zero

    def factor(self, weight_OI: Tensor) -> Tensor:
        """m / ||W + alpha B A||, (O,)."""
        return (self.magnitude_O / self.norm(weight_OI)).to(self.magnitude_O.dtype)

    def folded(self, weight_OI: Tensor) -> Tensor:
        """m (W + alpha B A) / ||W + alpha B A||, (O, I)."""
        return self.factor(weight_OI)[:, None] * super().folded(weight_OI)


class DirectedLinear:
    """A linear layer in which some rows have their own direction and length."""

    def __init__(self, deltas: Sequence[Direction]) -> None:
        self.deltas = sorted(deltas, key=lambda delta: delta.rows)

    def __call__(self, layer: Any, x: Tensor) -> Tensor:
        """(B, N, I) to (B, N, O)."""
        x = x.to(autocast_type(x))  # kept once for backward, for A and the folded weight
        factors = [delta.factor(layer.weight[slice(*delta.rows)]) for delta in self.deltas]
        scale_O = _whole(self.deltas, factors, layer.out_features)
        # The bias is not scaled.
        shift_O = None if layer.bias is None else layer.bias * (1 - scale_O)
        y = rescaled(layer, x, scale_O, shift_O)
        # All corrections in one product: the B of a part is zero in the rows of the others.
        low = torch.cat([delta.alpha * delta.low(x) for delta in self.deltas], dim=-1)
        ups = [f[:, None] * delta.up_OR for delta, f in zip(self.deltas, factors, strict=True)]
        bounds = [(d.rows[0], layer.out_features - d.rows[1]) for d in self.deltas]
        up_OR = torch.cat(
            [F.pad(up, (0, 0, *bound)) for up, bound in zip(ups, bounds, strict=True)], 1
        )
        return y + F.linear(low, up_OR)


def _whole(deltas: Sequence[Direction], factors: Sequence[Tensor], rows: int) -> Tensor:
    """Factors of all rows of a layer; 1 for rows that are not adapted."""
    pieces, at = [], 0
    for delta, factor_O in zip(deltas, factors, strict=True):
        first, end = delta.rows
        pieces += [factor_O.new_ones(first - at), factor_O]
        at = end
    return torch.cat([*pieces, factors[0].new_ones(rows - at)])
