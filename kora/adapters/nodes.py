"""Nodes of KoRA: what each adapter sends into the composition.

Shapes: B images, N tokens, S summaries of the tokens (1, or 2 for `both`), I input width, O output
width, R rank, C d_comp.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.adapters.low_rank import LowRankDelta
from kora.adapters.node_form import NodeForm, orthogonal
from kora.backbone.kernels import Update
from kora.backbone.sites import Site, wrap
from kora.backbone.vit import Backbone

__all__ = ["Node", "PaperNode", "Pool", "RefinedNode"]

Pool = Literal["mean", "cls", "both", "attention", "tokens"]

#: Pools that keep every token until the composition.
WHOLE: tuple[Pool, ...] = ("attention", "tokens")


class Node(nn.Module):
    """One adapter of the graph: what it keeps of a pass, and the vector that it sends.

    What it keeps for the composition is the smallest tensor there is: tokens are pooled first where
    what follows is linear.
    """

    #: Whether what is composed goes back into the backbone while the batch still passes.
    echoes: bool = False
    #: Whether it sends zero at the start, and only what reads it can change that.
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
        """p, (B, C) or (B, N, C), of what was kept of a batch."""
        raise NotImplementedError

    def projection(self) -> tuple[Tensor, Tensor | None]:
        """What the tokens are multiplied by, as two factors (or M and None), without alpha."""
        raise NotImplementedError

    def listen(self) -> None:
        """Keep what the next pass brings, and nothing that a recomputation brings in backward."""
        self._listening = True

    def seen(self) -> Tensor:
        """What was kept of the batch that is passing, also where backward computes it again."""
        assert self._last is not None, "the site was not reached"
        return self._last

    def taken(self) -> Tensor:
        """What was kept of the batch that has just passed; forgets it."""
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
    A x (injected).
    """

    def __init__(
        self, site: Site, *, rank: int, d_comp: int, alpha: float, inject: bool, pool: Pool,
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(inject=inject, pool=pool)
        self.delta: LowRankDelta = LowRankDelta(site, rank, alpha=alpha, dropout=dropout)
        self.project_CO = nn.Parameter(torch.empty(d_comp, site.d_out))
        nn.init.kaiming_uniform_(self.project_CO, a=math.sqrt(5))  # nn.Linear's start
        self.starts_silent = not inject  # B starts at zero; where it injects, its site trains it

    def add_to(self, backbone: Backbone, site: Site) -> None:
        """Observe the site, and add to it where it injects."""
        wrap(backbone, site, self.observe, self.update if self.inject else None)

    def observe(self, x: Tensor) -> Tensor | None:
        """Called by the site with its input (B, N, I); returns alpha * o where it injects."""
        if not self.inject:
            self._keep(x)
            return None
        low = self.delta.low(x)
        self._keep(low)
        return self.delta.up(self.delta.alpha * low)

    def update(self) -> Update:
        """What `observe` does where it injects, as a low-rank update."""
        return self.delta.update()._replace(seen=self._keep)

    def vector(self, kept: Tensor) -> Tensor:
        """p, (B, C) or (B, N, C), of what was kept of a batch."""
        low = kept if self.inject else self.delta.low(kept)
        if self.pool == "tokens":  # (P B) low: no (B, N, O) is made, or kept for backward
            return F.linear(low, self.project_CO @ self.delta.up_OR)
        return F.linear(self.delta.up(low), self.project_CO)

    def projection(self) -> tuple[Tensor, Tensor]:
        """P B (C, R) and A (R, I)."""
        return self.project_CO @ self.delta.up_OR, self.delta.down_RI


class RefinedNode(Node):
    """p = sum_s M_s norm(x_s), for the summaries x_s of the tokens at a site.

    Here the norm is LayerNorm without parameters (or nothing), so that no site speaks louder than
    another because its tokens are longer. M_s is one matrix (C, I), or P_s B A.

    Where it injects, it adds alpha B A x at its site as well, whatever M_s is. Where it does not,
    B starts at random: nothing else keeps P B A from staying zero behind a readout from zero.
    """

    def __init__(
        self, site: Site, form: NodeForm, *, rank: int, d_comp: int, alpha: float, inject: bool,
        pool: Pool, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(inject=inject, pool=pool)
        self.form = (form,)  # a tuple is not registered as a submodule
        self.starts_silent = form.direct and form.init == "zero"  # its one matrix
        self.site_name = site.name
        summaries = 2 if pool == "both" else 1
        if inject or not form.direct:
            self.delta = LowRankDelta(site, rank, alpha=alpha, dropout=dropout)
        if self.delta is not None and not inject:
            nn.init.kaiming_uniform_(self.delta.up_OR, a=math.sqrt(5))
        if not form.direct:
            self.project_SCO = nn.Parameter(torch.empty(summaries, d_comp, site.d_out))
            nn.init.kaiming_uniform_(self.project_SCO.flatten(0, 1), a=math.sqrt(5))
        elif form.shared:
            form.share(site.name, (summaries, d_comp, site.d_in))
            self.scale = nn.Parameter(torch.ones(()))
        else:
            self.matrix_SCI = nn.Parameter(form.started((summaries, d_comp, site.d_in)))
        if pool == "attention":
            self.query_I = nn.Parameter(torch.zeros(site.d_in))  # begins as the mean

    def add_to(self, backbone: Backbone, site: Site) -> None:
        """Observe the site. Where it injects, what it adds is no function of what it sends."""
        wrap(backbone, site, self.observe)
        if self.inject:
            assert self.delta is not None
            wrap(backbone, site, self.delta, self.delta.update)

    def observe(self, x: Tensor) -> None:
        """Called by the site with its input (B, N, I)."""
        self._keep(x)

    def vector(self, kept: Tensor) -> Tensor:
        """p, (B, C) or (B, N, C), of what was kept: (B, S I), or the tokens (B, N, I)."""
        form = self.form[0]
        if self.pool == "both":
            kept = kept.view(kept.shape[0], 2, -1)
        x = F.layer_norm(kept, kept.shape[-1:]) if form.norm else kept
        if self.pool == "attention":
            shares_BN = torch.softmax(x @ self.query_I / math.sqrt(x.shape[-1]), dim=-1)
            x = (shares_BN[:, None] @ x).squeeze(1)
        if form.dropout:
            x = F.dropout(x, form.dropout, self.training)
        p = self._times(x)
        if form.node_dropout and self.training:
            kept_B = torch.rand(len(p), *[1] * (p.ndim - 1), device=p.device) >= form.node_dropout
            p = p * kept_B / (1 - form.node_dropout)
        return p

    def matrix(self) -> Tensor:
        """M (S, C, I), without alpha."""
        form = self.form[0]
        if not form.direct:
            assert self.delta is not None
            return self.project_SCO @ self.delta.up_OR @ self.delta.down_RI
        if form.shared:
            return self.scale * form.of_site(self.site_name)
        return orthogonal(self.matrix_SCI) if form.orthogonal == "hard" else self.matrix_SCI

    def projection(self) -> tuple[Tensor, Tensor | None]:
        """What summaries are multiplied by: (S C, R) and (R, I), or M (S C, I) and None."""
        if not self.form[0].direct:
            assert self.delta is not None
            return (self.project_SCO @ self.delta.up_OR).flatten(0, 1), self.delta.down_RI
        return self.matrix().flatten(0, 1), None

    def _times(self, x: Tensor) -> Tensor:
        """M x, of two summaries (B, 2, I) their sum."""
        if self.form[0].direct:
            matrix_SCI = self.matrix()
        else:
            assert self.delta is not None
            x = F.linear(x, self.delta.down_RI)  # without the dropout of what is injected
            matrix_SCI = self.project_SCO @ self.delta.up_OR
        if self.pool != "both":
            return F.linear(x, matrix_SCI[0])
        return F.linear(x[:, 0], matrix_SCI[0]) + F.linear(x[:, 1], matrix_SCI[1])


def overlap(nodes: Sequence[RefinedNode]) -> Tensor:
    """The mean over pairs of nodes of ||M_i M_j^T||_F^2 / (||M_i||_F ||M_j||_F)^2.

    Of nodes that read the same width, of which there must be two; others have nothing in common.
    """
    by_width: dict[int, list[Tensor]] = {}
    for node in nodes:
        matrix_SI = node.matrix().flatten(0, 1)
        by_width.setdefault(matrix_SI.shape[1], []).append(
            F.normalize(matrix_SI.flatten(), dim=0).view_as(matrix_SI)
        )
    total, pairs = torch.zeros((), device=nodes[0].matrix().device), 0
    for matrices in by_width.values():
        if len(matrices) > 1:
            gram = torch.stack(matrices)  # (L, S C, I)
            products = torch.einsum("aci,bdi->abcd", gram, gram).square().sum(dim=(2, 3))
            total = total + products.sum() - products.diagonal().sum()
            pairs += len(matrices) * (len(matrices) - 1)
    return total / pairs


def token_mean(x: Tensor) -> Tensor:
    """(B, N, I) to (B, I); in bfloat16 on a CPU as a product, in a fifth of the time."""
    if x.dtype is torch.bfloat16 and x.device.type == "cpu":
        ones = x.new_ones(1, 1, x.shape[1]).expand(len(x), -1, -1)
        return torch.bmm(ones, x).squeeze(1) / x.shape[1]  # sums in float32, as mean does
    return x.mean(dim=1)


def pooled_tokens(x: Tensor, pool: Pool) -> Tensor:
    """What of (B, N, I) a node keeps: (B, I), (B, 2 I) for `both`, or all tokens."""
    if pool == "mean":
        return token_mean(x)
    if pool == "both":
        return torch.cat((token_mean(x), x[:, 0]), dim=1)
    return x[:, 0].clone() if pool == "cls" else x  # a view would keep all tokens for backward
