"""Nodes of KoRA: what each adapter sends into the composition.

Shapes: B images, N tokens, S summaries of the tokens (1, or 2 for `both`), I input width, O output
width, R rank, C d_comp.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.adapters.graph.grid_mix import GridMix
from kora.adapters.graph.node_matrices import NodeMatrix
from kora.adapters.low_rank import LowRankDelta
from kora.backbone.kernels import Update
from kora.backbone.sites import Site, wrap
from kora.backbone.vit import Backbone

__all__ = ["Node", "PaperNode", "Pool", "RefinedNode"]

Pool = Literal["mean", "cls", "both", "attention", "tokens"]

#: Pools that keep every token until the composition.
WHOLE: tuple[Pool, ...] = ("attention", "tokens")


class Node(nn.Module):
    """One adapter of the graph: what it keeps of a pass, and the vector that it sends.

    It keeps the smallest possible tensor for the composition: if what follows is linear, tokens are
    pooled first.
    """

    #: Whether the composition is fed back into the backbone during the same pass.
    echoes: bool = False
    #: Whether it sends zero at the start: then it trains only if the readout is not zero too.
    starts_silent: bool
    _listening: bool = False
    _kept: Tensor | None = None
    _last: Tensor | None = None

    def __init__(self, *, inject: bool, pool: Pool) -> None:
        super().__init__()
        self.delta: LowRankDelta | None = None
        self.inject = inject
        self.pool: Pool = pool

    def add_to(self, backbone: Backbone, site: Site) -> None:
        """Hook it in at its site."""
        raise NotImplementedError

    def vector(self, kept: Tensor) -> Tensor:
        """p, (B, C) or (B, N, C), from what was kept of a batch."""
        raise NotImplementedError

    def projection(self) -> tuple[Tensor, Tensor | None]:
        """The matrix applied to the tokens, as two factors (or M and None), without alpha."""
        raise NotImplementedError

    def listen(self) -> None:
        """Keep the tokens of the next pass, but not those of a recomputation in backward."""
        self._listening = True

    def seen(self) -> Tensor:
        """What was kept of the current batch, also when backward recomputes it."""
        assert self._last is not None, "the site was not reached"
        return self._last

    def taken(self) -> Tensor:
        """Return and forget what was kept of the last batch."""
        kept, self._kept = self._kept, None
        assert kept is not None, "the site was not reached"
        return kept

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None, "_last": None}  # a copy has seen no batch

    def _keep(self, x: Tensor) -> None:
        pooled = pooled_tokens(x, self.pool)
        if self.echoes:
            self._last = pooled
        if self._listening:
            self._kept, self._listening = pooled, False


class PaperNode(Node):
    """o = B A x and its projection p = P o (KoRA paper, equation 2).

    Everything here is linear, so tokens are pooled first, exactly:
    mean_n(P B A x_n) = P B A mean_n(x_n). It keeps the pooled input (side network) or the pooled
    A x (injected). `mix` is a spatial step on A x of all tokens.
    """

    def __init__(
        self, site: Site, *, rank: int, d_comp: int, alpha: float, inject: bool, pool: Pool,
        dropout: float = 0.0, mix: GridMix | None = None,
    ) -> None:  # fmt: skip
        super().__init__(inject=inject, pool=pool)
        self.mix = mix
        self.delta: LowRankDelta = LowRankDelta(site, rank, alpha=alpha, dropout=dropout)
        self.project_CO = nn.Parameter(torch.empty(d_comp, site.d_out))
        nn.init.kaiming_uniform_(self.project_CO, a=math.sqrt(5))  # nn.Linear's start
        self.starts_silent = not inject  # B starts at zero; if it injects, its site trains it

    def add_to(self, backbone: Backbone, site: Site) -> None:
        """Observe the site, and add to it if the node injects."""
        fused = self.inject and self.mix is None
        wrap(backbone, site, self.observe, self.update if fused else None)

    def observe(self, x: Tensor) -> Tensor | None:
        """Called by the site with its input (B, N, I); returns alpha * o if the node injects."""
        if not self.inject:
            self._keep(x)
            return None
        low = self._mixed(self.delta.low(x))
        self._keep(low)
        return self.delta.up(self.delta.alpha * low)

    def update(self) -> Update:
        """What `observe` does if the node injects, as a low-rank update."""
        return self.delta.update()._replace(seen=self._keep)

    def vector(self, kept: Tensor) -> Tensor:
        """p, (B, C) or (B, N, C), from what was kept of a batch."""
        low = kept if self.inject else self._mixed(self.delta.low(kept))
        if self.pool == "tokens":  # (P B) low: no (B, N, O) is made, or kept for backward
            return F.linear(low, self.project_CO @ self.delta.up_OR)
        return F.linear(self.delta.up(low), self.project_CO)

    def _mixed(self, low: Tensor) -> Tensor:
        """A x, after the spatial step if there is one."""
        mixed: Tensor = low if self.mix is None else self.mix(low)
        return mixed

    def projection(self) -> tuple[Tensor, Tensor]:
        """P B (C, R) and A (R, I)."""
        return self.project_CO @ self.delta.up_OR, self.delta.down_RI


class RefinedNode(Node):
    """p = sum_s M_s norm(x_s), for the summaries x_s of the tokens at a site.

    The norm is LayerNorm without parameters (or nothing), so that no site dominates because its
    tokens are longer. The form's `matrix` gives M_s (C, I). If a correction is injected at the
    site, alpha B A x is added there as well. `mix` is a spatial step on the p of all tokens.
    """

    def __init__(
        self, site: Site, *, d_comp: int, pool: Pool, matrix: NodeMatrix, norm: bool,
        dropout: float, node_dropout: float, injected: LowRankDelta | None,
        mix: GridMix | None = None,
    ) -> None:  # fmt: skip
        super().__init__(inject=injected is not None, pool=pool)
        self.mix = mix
        self._matrix = (matrix,)  # a tuple is not registered as a submodule
        self.starts_silent = matrix.starts_silent
        self.site_name = site.name
        self.norm = norm
        self.dropout = dropout
        self.node_dropout = node_dropout
        self.delta = injected
        matrix.build(self, site, 2 if pool == "both" else 1, d_comp)
        if pool == "attention":
            self.query_I = nn.Parameter(torch.zeros(site.d_in))  # starts as the mean

    def add_to(self, backbone: Backbone, site: Site) -> None:
        """Observe the site. What is added there does not depend on what the node sends."""
        wrap(backbone, site, self.observe)
        if self.inject:
            assert self.delta is not None
            wrap(backbone, site, self.delta, self.delta.update)

    def observe(self, x: Tensor) -> None:
        """Called by the site with its input (B, N, I)."""
        self._keep(x)

    def vector(self, kept: Tensor) -> Tensor:
        """p, (B, C) or (B, N, C), from what was kept: (B, S I), or the tokens (B, N, I)."""
        if self.pool == "both":
            kept = kept.view(kept.shape[0], 2, -1)
        x = F.layer_norm(kept, kept.shape[-1:]) if self.norm else kept
        if self.pool == "attention":
            shares_BN = torch.softmax(x @ self.query_I / math.sqrt(x.shape[-1]), dim=-1)
            x = (shares_BN[:, None] @ x).squeeze(1)
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        p = self._times(x)
        if self.mix is not None:
            p = self.mix(p)
        if self.node_dropout and self.training:
            kept_B = torch.rand(len(p), *[1] * (p.ndim - 1), device=p.device) >= self.node_dropout
            p = p * kept_B / (1 - self.node_dropout)
        return p

    def matrix(self) -> Tensor:
        """M (S, C, I), without alpha."""
        return self._matrix[0].of(self)

    def projection(self) -> tuple[Tensor, Tensor | None]:
        """The matrix applied to summaries: (S C, R) and (R, I), or M (S C, I) and None."""
        left_SCR, down_RI = self._matrix[0].factors(self)
        return left_SCR.flatten(0, 1), down_RI

    def _times(self, x: Tensor) -> Tensor:
        """M x; for two summaries (B, 2, I), the sum."""
        matrix_SCI, down_RI = self._matrix[0].factors(self)
        if down_RI is not None:
            x = F.linear(x, down_RI)  # without the dropout of what is injected
        if self.pool != "both":
            return F.linear(x, matrix_SCI[0])
        return F.linear(x[:, 0], matrix_SCI[0]) + F.linear(x[:, 1], matrix_SCI[1])


def token_mean(x: Tensor) -> Tensor:
    """(B, N, I) to (B, I); in bfloat16 on a CPU as a product, which takes a fifth of the time."""
    if x.dtype is torch.bfloat16 and x.device.type == "cpu":
        ones = x.new_ones(1, 1, x.shape[1]).expand(len(x), -1, -1)
        return torch.bmm(ones, x).squeeze(1) / x.shape[1]  # sums in float32, as mean does
    return x.mean(dim=1)


def pooled_tokens(x: Tensor, pool: Pool) -> Tensor:
    """What a node keeps of (B, N, I): (B, I), (B, 2 I) for `both`, or all tokens."""
    if pool == "mean":
        return token_mean(x)
    if pool == "both":
        return torch.cat((token_mean(x), x[:, 0]), dim=1)
    return x[:, 0].clone() if pool == "cls" else x  # a view would keep all tokens for backward
