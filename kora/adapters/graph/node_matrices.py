"""The matrix of a refined node: plain, shared, or of low rank.

Shapes: S summaries of the tokens (1, or 2 for the pool `both`), I input width, O output width, R
rank, C d_comp, L nodes.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from kora.adapters.arguments import require_choice, require_positive
from kora.adapters.low_rank import LowRankDelta
from kora.backbone.sites import Site

__all__ = [
    "FactoredMatrix",
    "NodeMatrix",
    "PlainMatrix",
    "SharedMatrix",
]

MatrixInit = Literal["default", "zero"]


class NodeMatrix(nn.Module):
    """M (S, C, I) of each node; its parameters belong to one node, or nodes share them."""

    #: Whether it starts at zero: then it trains only if the readout does not start at zero too.
    starts_silent: bool = False

    #: The constructor argument that makes it larger or smaller, as in `Strategy`.
    size_argument: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.matrices = nn.ParameterDict()  # what nodes of several blocks share

    def build(self, node: nn.Module, site: Site, summaries: int, d_comp: int) -> None:
        """Give a node its parameters: M itself, with nn.Linear's start for S I inputs."""
        bound = 1 / math.sqrt(summaries * site.d_in)
        matrix_SCI = torch.empty(summaries, d_comp, site.d_in).uniform_(-bound, bound)
        node.matrix_SCI = nn.Parameter(matrix_SCI)

    def of(self, node: Any) -> Tensor:
        """M (S, C, I) of a node."""
        matrix_SCI: Tensor = node.matrix_SCI
        return matrix_SCI

    def factors(self, node: Any) -> tuple[Tensor, Tensor | None]:
        """M and None, or the low-rank factors of M: (S, C, R) and (R, I)."""
        return self.of(node), None


class PlainMatrix(NodeMatrix):
    """A matrix for each node.

    Args:
        init: `default`, as a linear layer, for readouts that start at zero; `zero` for readouts
            that do not.

    Raises:
        ValueError: For an unknown `init`.
    """

    def __init__(self, init: MatrixInit = "default") -> None:
        super().__init__()
        require_choice(type(self).__name__, "init", init, get_args(MatrixInit))
        self.init: MatrixInit = init
        self.starts_silent = init == "zero"

    def build(self, node: nn.Module, site: Site, summaries: int, d_comp: int) -> None:
        """M, at zero or at random."""
        if self.init == "default":
            super().build(node, site, summaries, d_comp)
        else:
            node.matrix_SCI = nn.Parameter(torch.zeros(summaries, d_comp, site.d_in))


class SharedMatrix(PlainMatrix):
    """A matrix for the same site of all blocks, with a scale for each block.

    Args:
        init: See PlainMatrix.

    Raises:
        ValueError: For an unknown `init`.
    """

    def build(self, node: nn.Module, site: Site, summaries: int, d_comp: int) -> None:
        """A scale; and the matrix of the site name, for the first node that has this name."""
        if site.name not in self.matrices:
            super().build(node, site, summaries, d_comp)
            self.matrices[site.name] = node.matrix_SCI
            del node.matrix_SCI
        node.scale = nn.Parameter(torch.ones(()))

    def of(self, node: Any) -> Tensor:
        """The scale of the node times the matrix of its site."""
        matrix_SCI: Tensor = node.scale * self.matrices[node.site_name]
        return matrix_SCI


class FactoredMatrix(NodeMatrix):
    """P B A instead of one matrix: the same functions, with more parameters if C <= R.

    B A is the correction injected at the site. If nothing is injected, it has its own of this rank,
    whose B starts at random: otherwise P B A would stay zero before a readout that starts at zero.

    Args:
        rank: R of A (R, I), B (O, R) and P (S, C, O), O the output width of the site.

    Raises:
        ValueError: For a rank below 1, or above the layer's.
    """

    size_argument = "rank"

    def __init__(self, rank: int = 8) -> None:
        super().__init__()
        require_positive("FactoredMatrix", rank=rank)
        self.rank = rank

    def build(self, node: Any, site: Site, summaries: int, d_comp: int) -> None:
        """A and B, then P."""
        if node.delta is None:
            node.delta = LowRankDelta(site, self.rank)
            nn.init.kaiming_uniform_(node.delta.up_OR, a=math.sqrt(5))
        node.project_SCO = nn.Parameter(torch.empty(summaries, d_comp, site.d_out))
        nn.init.kaiming_uniform_(node.project_SCO.flatten(0, 1), a=math.sqrt(5))

    def of(self, node: Any) -> Tensor:
        """The product."""
        left_SCR, down_RI = self.factors(node)
        return left_SCR @ down_RI

    def factors(self, node: Any) -> tuple[Tensor, Tensor]:
        """P B (S, C, R) and A (R, I)."""
        return node.project_SCO @ node.delta.up_OR, node.delta.down_RI
