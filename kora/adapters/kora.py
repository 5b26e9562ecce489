"""KoRA: adapters as the nodes of a directed graph that ends in the representation.

Shapes: B images, N tokens, I input width, O output width, R rank, C d_comp, D width, L nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.adapters.base import (
    LowRankDelta,
    Strategy,
    require_choice,
    require_effect,
    require_positive,
)
from kora.adapters.composers import Composer, Sequential
from kora.adapters.readouts import ClsReadout, Readout
from kora.backbones import Backbone, Features
from kora.frozen_inputs import Inputs
from kora.kernels import Update
from kora.sites import ALL_SITES, Site, find_sites, wrap

__all__ = ["KoRA", "Node"]

Pool = Literal["mean", "cls", "tokens"]
_NODE = "node."  # before the key of a node, in the names of its inputs


class Node(nn.Module):
    """One adapter of the graph: o = B A x and its projection p = P o (KoRA paper, equation 2).

    Everything here is linear, so tokens are pooled first, exactly:
    mean_n(P B A x_n) = P B A mean_n(x_n). What a node keeps for the composition is the smallest
    tensor there is: the pooled input (side network) or the pooled A x (injected).
    """

    def __init__(
        self, site: Site, *, rank: int, d_comp: int, alpha: float, inject: bool, pool: Pool
    ) -> None:
        super().__init__()
        self.delta = LowRankDelta(site, rank, alpha=alpha)
        self.project_CO = nn.Parameter(torch.empty(d_comp, site.d_out))
        nn.init.kaiming_uniform_(self.project_CO, a=math.sqrt(5))  # nn.Linear's start
        self.inject = inject
        self.pool: Pool = pool
        self._kept: Tensor | None = None
        self._listening = False

    def listen(self) -> None:
        """Keep what the next pass brings, and nothing that a recomputation brings in backward."""
        self._listening = True

    def observe(self, x: Tensor) -> Tensor | None:
        """Called by the site with its input (B, N, I); returns alpha * o where it injects."""
        if not self.inject:
            self._keep(x)
            return None
        low = self.delta.low(x)
        self._keep(low)
        return self.delta.up(self.delta.alpha * low)

    def update(self) -> Update | None:
        """What `observe` does where it injects, as a low-rank update."""
        update = self.delta.update()
        return None if update is None else update._replace(seen=self._keep)

    def taken(self) -> Tensor:
        """What was kept of the batch that has just passed; forgets it."""
        kept, self._kept = self._kept, None
        assert kept is not None, "the site was not reached"
        return kept

    def vector(self, kept: Tensor) -> Tensor:
        """p, (B, C) or (B, N, C), of what was kept of a batch."""
        low = kept if self.inject else self.delta.low(kept)
        if self.pool == "tokens":  # (P B) low: no (B, N, O) is made, or kept for backward
            return F.linear(low, self.project_CO @ self.delta.up_OR)
        return F.linear(self.delta.up(low), self.project_CO)

    def _keep(self, x: Tensor) -> None:
        pooled = _pooled(x, self.pool)
        if self._listening:
            self._kept, self._listening = pooled, False


class KoRA(Strategy):
    """Low-rank adapters whose outputs are composed from early to late layers.

    Nodes: o_i = B_i A_i x_i, p_i = P_i o_i. Composer: p_1 ... p_L to c_L. Readout:
    h_final = h_CLS + alpha * Proj_final(c_L).
    Source: "KoRA: A Framework for Compositional Fine-Tuning" (2025), section 2.

    Args:
        rank: R of A (R, d_in) and B (d_out, R).
        d_comp: C, the width of the composition space.
        alpha: Multiplies the readout, and o_i where it is injected.
        inject: Also add alpha * o_i at the site itself, as equation (1) does. False is the
            published notebook's form: a side network; no gradient passes through the backbone,
            which then runs without autograd.
        pool: What of the tokens a node sends: their `mean` (the notebook), the `cls` token, or
            all `tokens` (a composition for each token).
        sites: See LoRA.
        blocks: Numbers of the adapted blocks; None means all.
        composer: How the vectors of the nodes become one; the paper's chain by default.
        readout: Where it goes; the paper's Proj_final on CLS by default. A head that reads patch
            tokens (depth) sees nothing of that: use TokenReadout with `pool: tokens` there.

    Raises:
        ValueError: For a rank or d_comp below 1, an alpha of 0, an unknown pool, an unknown or dead
            site, a pool of `cls` on a backbone without CLS, or a TokenReadout without
            `pool: tokens`.
    """

    size_argument = "rank"

    def __init__(
        self,
        rank: int = 8,
        d_comp: int = 8,
        *,
        alpha: float = 1.0,
        inject: bool = True,
        pool: Pool = "mean",
        sites: Sequence[str] = ALL_SITES,
        blocks: Sequence[int] | None = None,
        composer: Composer | None = None,
        readout: Readout | None = None,
    ) -> None:
        super().__init__()
        require_positive("KoRA", rank=rank, d_comp=d_comp)
        require_effect("KoRA", alpha)
        require_choice("KoRA", "pool", pool, get_args(Pool))
        self.rank = rank
        self.d_comp = d_comp
        self.alpha = alpha
        self.inject = inject
        self.pool = pool
        self.sites = sites
        self.blocks = blocks
        self.composer = Sequential() if composer is None else composer
        self.readout = ClsReadout() if readout is None else readout
        if self.readout.per_token and pool != "tokens":
            raise ValueError(
                f"KoRA: {type(self.readout).__name__} adds to every token what was composed for "
                f"it, and pool='{pool}' composes one vector an image. Use pool='tokens'."
            )
        self.needs_backbone_grad = inject
        self.needs_last_tokens = pool != "cls"
        self.nodes = nn.ModuleDict()
        #: Given p_1 ... p_L and c_L of every pass, as long as somebody reads them.
        self.observer: Callable[[Sequence[Tensor], Tensor], None] | None = None

    @property
    def label(self) -> str:
        """`KoRA`, or `KoRA-side` where nothing is injected; `-tokens` behind it for dense ones."""
        return ("KoRA" if self.inject else "KoRA-side") + "-tokens" * self.readout.per_token

    @property
    def starts_as_backbone(self) -> bool:
        """Not with a readout of random start, as the published notebook has it."""
        return getattr(self.readout, "init", "zero") == "zero"

    @property
    def without_effect(self) -> str:
        """What to do where a part of it does not reach the head."""
        if self.readout.per_token:
            return super().without_effect
        return (
            f"{type(self.readout).__name__} changes the pooled vector alone, and this head reads "
            "patch tokens: use readout TokenReadout with pool tokens "
            "(--config configs/adapters/kora_tokens.yaml)."
        )

    def attach(self, backbone: Backbone) -> None:
        """Place the nodes, then size the composer and the readout."""
        assert not self.nodes, "attached twice"
        if self.pool == "cls" and not backbone.has_cls:
            raise ValueError(
                f"KoRA: pool='{self.pool}' reads the CLS token, and {backbone.name} has none. "
                "Use pool='mean'."
            )
        for site in find_sites(backbone, self.sites, blocks=self.blocks):
            node = Node(
                site,
                rank=self.rank,
                d_comp=self.d_comp,
                alpha=self.alpha,
                inject=self.inject,
                pool=self.pool,
            )
            self.nodes[site.key] = node
            wrap(backbone, site, node.observe, node.update if self.inject else None)
        self.composer.build(len(self.nodes), self.d_comp)
        if self.readout.per_token and backbone.pooled_width != backbone.width:
            raise ValueError(
                f"KoRA: {type(self.readout).__name__} adds to tokens and to the pooled vector, and "
                f"those of {backbone.name} have {backbone.width} and {backbone.pooled_width} "
                "channels. Use ClsReadout, or another backbone."
            )
        self.readout.build(self.d_comp, backbone.pooled_width)

    def frozen_inputs(self, backbone: Backbone, images: Tensor) -> dict[str, Tensor]:
        """The features, and what each node kept of the pass."""
        for node in self._nodes().values():
            node.listen()
        inputs = super().frozen_inputs(backbone, images)
        return inputs | {f"{_NODE}{key}": node.taken() for key, node in self._nodes().items()}

    def from_frozen(self, inputs: Inputs) -> Features:
        """Features with the composition read out."""
        features = super().from_frozen(inputs)
        vectors = [node.vector(inputs[f"{_NODE}{key}"]) for key, node in self._nodes().items()]
        composed = self.composer(vectors)
        if self.observer is not None:
            self.observer(vectors, composed)
        adapted: Features = self.readout(features, composed, self.alpha)
        return adapted

    def frozen_key(self) -> dict[str, Any]:
        """Which nodes there are, and how they pool; of a side network alone."""
        if self.inject:
            return super().frozen_key()
        if self.pool == "tokens":
            raise ValueError(
                "adapter.pool is 'tokens': to keep all tokens of every site takes longer to read "
                "than the backbone to compute"
            )
        return {"nodes": list(self.nodes), "pool": self.pool}

    def _nodes(self) -> dict[str, Node]:
        return {key: node for key, node in self.nodes.items() if isinstance(node, Node)}


def _pooled(x: Tensor, pool: Pool) -> Tensor:
    if pool == "mean":
        return x.mean(dim=1)
    return x[:, 0].clone() if pool == "cls" else x  # a view would keep all tokens for backward
