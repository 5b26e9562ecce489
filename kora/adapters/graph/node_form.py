"""Forms of KoRA's nodes: where they sit, what they read of the tokens, what they add there.

Shapes: R rank, C d_comp.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, get_args

from torch import nn

from kora.adapters.arguments import require_choice, require_positive, require_probability
from kora.adapters.graph.grid_mix import GridMix
from kora.adapters.graph.node_matrices import NodeMatrix, PlainMatrix
from kora.adapters.graph.nodes import Node, PaperNode, Pool, RefinedNode
from kora.adapters.low_rank import LowRankDelta
from kora.backbone.sites import ALL_SITES, find_sites, wrap
from kora.backbone.vit import Backbone

__all__ = ["Injection", "NodeForm", "PaperForm", "RefinedForm"]

PaperPool = Literal["mean", "cls", "tokens"]
Placed = tuple[dict[str, Node], dict[str, LowRankDelta]]


class NodeForm(nn.Module, ABC):
    """The form of all nodes of a KoRA."""

    pool: Pool

    #: The argument that sets the size of a node, such as `rank`; None: only d_comp does.
    size_argument: str | None = None

    @property
    @abstractmethod
    def injection(self) -> PaperForm | Injection | None:
        """Holds `sites` and `blocks` of the LoRA that is added in the backbone; None: no LoRA."""

    @property
    @abstractmethod
    def label(self) -> str:
        """Name of a KoRA with these nodes in folders and tables."""

    @abstractmethod
    def place(self, backbone: Backbone, d_comp: int, alpha: float) -> Placed:
        """Hook the nodes in; return them in forward order, and corrections at other sites.

        Raises:
            ValueError: For an unknown or dead site, or settings that do not fit the backbone.
        """


class PaperForm(NodeForm):
    """The paper's nodes: o = B A x is added at the site, and p = P o goes into the composition.

    Source: KoRA paper (2025), section 2, equations 1 and 2.

    Args:
        rank: R of A (R, d_in) and B (d_out, R).
        inject: False is the published notebook's form, a side network: nothing is added at the
            sites, and the backbone runs without autograd.
        pool: What a node sends of the tokens: their `mean` (the notebook), the `cls` token, or all
            `tokens` (a composition for each token).
        sites: See LoRA.
        blocks: Blocks with nodes; negative numbers count from the end; None means all.
        dropout: Probability with which inputs of A are dropped in training.
        spatial: A 3x3 step over the grid of patches on A x (`GridMix`); only with `pool: tokens`.

    Raises:
        ValueError: For a rank below 1, an unknown pool, a dropout outside [0, 1), or `spatial` with
            another pool.
    """

    size_argument = "rank"

    def __init__(
        self,
        rank: int = 8,
        *,
        inject: bool = True,
        pool: PaperPool = "mean",
        sites: Sequence[str] = ALL_SITES,
        blocks: Sequence[int] | None = None,
        dropout: float = 0.0,
        spatial: bool = False,
    ) -> None:
        super().__init__()
        _require_tokens("PaperForm", pool, spatial)
        require_positive("PaperForm", rank=rank)
        require_probability("PaperForm", dropout=dropout)
        require_choice("PaperForm", "pool", pool, get_args(PaperPool))
        self.rank = rank
        self.inject = inject
        self.pool: PaperPool = pool
        self.sites = sites
        self.blocks = blocks
        self.dropout = dropout
        self.spatial = spatial

    @property
    def injection(self) -> PaperForm | None:
        """The nodes themselves."""
        return self if self.inject else None

    @property
    def label(self) -> str:
        """`KoRA`, or `KoRA-side` if nothing is injected; then `-spatial`, with that step."""
        return f"KoRA{'' if self.inject else '-side'}{'-spatial' * self.spatial}"

    def place(self, backbone: Backbone, d_comp: int, alpha: float) -> Placed:
        """A node at every site."""
        nodes: dict[str, Node] = {}
        for site in find_sites(backbone, self.sites, blocks=self.blocks):
            node = PaperNode(
                site, rank=self.rank, d_comp=d_comp, alpha=alpha, inject=self.inject,
                pool=self.pool, dropout=self.dropout,
                mix=GridMix(self.rank, backbone) if self.spatial else None,
            )  # fmt: skip
            node.add_to(backbone, site)
            nodes[site.key] = node
        return nodes, {}


class Injection(nn.Module):
    """LoRA in addition to refined nodes: alpha B A x at these sites, with the KoRA's alpha.

    Args:
        rank: R of A (R, d_in) and B (d_out, R).
        sites: See LoRA.
        blocks: Adapted blocks; negative numbers count from the end; None means all.
        dropout: Probability with which inputs of A are dropped in training.

    Raises:
        ValueError: For a rank below 1, or a dropout outside [0, 1).
    """

    def __init__(
        self,
        rank: int = 8,
        *,
        sites: Sequence[str] = ALL_SITES,
        blocks: Sequence[int] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require_positive("Injection", rank=rank)
        require_probability("Injection", dropout=dropout)
        self.rank = rank
        self.sites = sites
        self.blocks = blocks
        self.dropout = dropout


class RefinedForm(NodeForm):
    """Nodes that read normalised summaries of the tokens through one matrix: p = M norm(x).

    Args:
        matrix: M; a plain one for each node by default.
        pool: What a node reads of the tokens: their `mean`, the `cls` token, `both`, a mean
            weighted by a learned `attention`, or all `tokens` (a composition for each token).
        sites: See LoRA.
        blocks: Blocks with nodes; negative numbers count from the end; None means all.
        norm: LayerNorm without parameters on what a node reads.
        dropout: Probability with which numbers that a node reads are dropped in training.
        node_dropout: Share of images for which a node sends zero in training.
        inject: LoRA in addition to the nodes, at the same or other sites; None makes a side
            network, which leaves the backbone as it is.
        spatial: A 3x3 step over the grid of patches on p (`GridMix`); only with `pool: tokens`.

    Raises:
        ValueError: For an unknown pool, a probability outside [0, 1), or `spatial` with another
            pool.
    """

    def __init__(
        self,
        matrix: NodeMatrix | None = None,
        *,
        pool: Pool = "mean",
        sites: Sequence[str] = ALL_SITES,
        blocks: Sequence[int] | None = None,
        norm: bool = True,
        dropout: float = 0.0,
        node_dropout: float = 0.0,
        inject: Injection | None = None,
        spatial: bool = False,
    ) -> None:
        super().__init__()
        _require_tokens("RefinedForm", pool, spatial)
        require_probability("RefinedForm", dropout=dropout, node_dropout=node_dropout)
        require_choice("RefinedForm", "pool", pool, get_args(Pool))
        # A tuple is not registered as a submodule: only what the nodes share is to train here.
        self._matrix = (PlainMatrix() if matrix is None else matrix,)
        self.matrices = self.matrix.matrices
        self.pool = pool
        self.sites = sites
        self.blocks = blocks
        self.norm = norm
        self.dropout = dropout
        self.node_dropout = node_dropout
        self.inject = inject
        self.spatial = spatial
        if inject is not None:
            self.size_argument = "inject.rank"
        elif self.matrix.size_argument is not None:
            self.size_argument = f"matrix.{self.matrix.size_argument}"

    @property
    def matrix(self) -> NodeMatrix:
        """M."""
        return self._matrix[0]

    @property
    def injection(self) -> Injection | None:
        """LoRA in addition to the nodes."""
        return self.inject

    @property
    def label(self) -> str:
        """`KoRA-refined`; with LoRA at its sites `-injected`, at others `KoRA-over-LoRA`.

        Then `-spatial`, with that step.
        """
        step = "-spatial" * self.spatial
        if self.inject is None:
            return f"KoRA-refined{step}"
        places = [(list(one.sites), one.blocks and list(one.blocks)) for one in (self, self.inject)]
        name = "KoRA-refined-injected" if places[0] == places[1] else "KoRA-over-LoRA"
        return name + step

    def place(self, backbone: Backbone, d_comp: int, alpha: float) -> Placed:
        """Nodes at their sites, and LoRA at its own."""
        places = find_sites(backbone, self.sites, blocks=self.blocks)
        inject = self.inject
        adapted = [] if inject is None else find_sites(backbone, inject.sites, blocks=inject.blocks)
        nodes: dict[str, Node] = {}
        others: dict[str, LowRankDelta] = {}
        for site in [*adapted, *(place for place in places if place not in adapted)]:
            delta = None
            if inject is not None and site in adapted:
                delta = LowRankDelta(site, inject.rank, alpha=alpha, dropout=inject.dropout)
            if site in places:
                node = RefinedNode(
                    site, d_comp=d_comp, pool=self.pool, matrix=self.matrix, norm=self.norm,
                    dropout=self.dropout, node_dropout=self.node_dropout, injected=delta,
                    mix=GridMix(d_comp, backbone) if self.spatial else None,
                )  # fmt: skip
                node.add_to(backbone, site)
                nodes[site.key] = node
            elif delta is not None:
                wrap(backbone, site, delta, delta.update)
                others[site.key] = delta
        return {site.key: nodes[site.key] for site in places}, others


def _require_tokens(form: str, pool: str, spatial: bool) -> None:
    """Refuse a spatial step on tokens that were pooled into one vector."""
    if spatial and pool != "tokens":
        raise ValueError(
            f"{form}: spatial: true looks at the neighbours of each patch, and pool='{pool}' keeps "
            "one vector an image. Use pool='tokens'."
        )
