"""The matrix of a refined node: plain, shared, orthonormal, penalised, or of low rank.

Shapes: S summaries of the tokens (1, or 2 for the pool `both`), I input width, O output width, R
rank, C d_comp, L nodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.adapters.arguments import require_choice, require_positive
from kora.adapters.low_rank import LowRankDelta
from kora.backbone.sites import Site

__all__ = [
    "DecorrelatedMatrix",
    "FactoredMatrix",
    "NodeMatrix",
    "OrthogonalMatrix",
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

    def penalty(self, nodes: Sequence[Any]) -> Tensor | None:
        """A term to add to the loss; None for none."""
        return None

    def check(self, sites: Sequence[Site]) -> None:
        """Refuse sites at which this matrix makes no sense.

        Raises:
            ValueError: For such sites.
        """


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


class OrthogonalMatrix(NodeMatrix):
    """A matrix for each node whose rows are orthonormal at every step (Householder reflections).

    Weight decay pulls each row towards a single channel.
    """

    def build(self, node: nn.Module, site: Site, summaries: int, d_comp: int) -> None:
        """The reflections' vectors.

        Below the 1 on the diagonal they have length 1, as in QR of random matrices. Shorter ones
        would hardly reflect, and row c of every node would lean towards channel c.
        """
        bound = math.sqrt(3 / max(d_comp, site.d_in))
        vectors_SCI = torch.empty(summaries, d_comp, site.d_in).uniform_(-bound, bound)
        node.matrix_SCI = nn.Parameter(vectors_SCI)

    def of(self, node: Any) -> Tensor:
        """M with orthonormal rows (columns, if C > I)."""
        return orthogonal(node.matrix_SCI)


class DecorrelatedMatrix(NodeMatrix):
    """A matrix for each node, and a penalty on the overlap of the matrices of two nodes.

    Args:
        factor: Weight of `overlap` in the loss.

    Raises:
        ValueError: For a factor that is not above 0, or if no two nodes read the same width.
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        if not 0 < factor < math.inf:
            raise ValueError(
                f"DecorrelatedMatrix: factor={factor}, expected a finite number above 0. Without "
                "a penalty, use PlainMatrix."
            )
        self.factor = factor

    def penalty(self, nodes: Sequence[Any]) -> Tensor | None:
        """The factor times the overlap of all nodes."""
        return self.factor * overlap([self.of(node) for node in nodes])

    def check(self, sites: Sequence[Site]) -> None:
        """Refuse sites of which no two have the same width: they cannot overlap."""
        widths = [site.d_in for site in sites]
        if len(set(widths)) == len(widths):
            raise ValueError(
                "DecorrelatedMatrix: it penalises what two nodes have in common, and no two of "
                f"the {len(widths)} nodes read the same width ({', '.join(map(str, widths))}). "
                "Place nodes in more blocks, or use PlainMatrix."
            )


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


def overlap(matrices: Sequence[Tensor]) -> Tensor:
    """The mean over pairs of M (S, C, I) of ||M_i M_j^T||_F^2 / (||M_i||_F ||M_j||_F)^2.

    Only matrices of the same width I form a pair; there must be at least one pair.
    """
    by_width: dict[int, list[Tensor]] = {}
    for matrix_SCI in matrices:
        matrix_SI = matrix_SCI.flatten(0, 1)
        by_width.setdefault(matrix_SI.shape[1], []).append(
            F.normalize(matrix_SI.flatten(), dim=0).view_as(matrix_SI)
        )
    total, pairs = torch.zeros((), device=matrices[0].device), 0
    for found in by_width.values():
        if len(found) > 1:
            gram = torch.stack(found)  # (L, S C, I)
            products = torch.einsum("aci,bdi->abcd", gram, gram).square().sum(dim=(2, 3))
            total = total + products.sum() - products.diagonal().sum()
            pairs += len(found) * (len(found) - 1)
    return total / pairs


def orthogonal(matrix_SCI: Tensor) -> Tensor:
    """Matrices (S, C, I) with orthonormal rows (columns, if C > I), from any numbers.

    The product of Householder reflections whose vectors v are the columns below the diagonal: what
    `torch.nn.utils.parametrizations.orthogonal` computes with `householder`, but as a function,
    since parametrised modules cannot be pickled. The closed form I - V T V^T, with a triangular T
    whose inverse is known (the UT transform, Joffrain et al. 2006, doi:10.1145/1141885.1141886),
    needs no loop over reflections, forward or backward. In float32; orthonormal to 1e-5, less
    exactly if a GPU multiplies in TF32.
    """
    wide = matrix_SCI.shape[1] <= matrix_SCI.shape[2]
    tall = matrix_SCI.mT if wide else matrix_SCI
    with torch.autocast(tall.device.type, enabled=False):
        first = torch.eye(*tall.shape[1:], device=tall.device)
        vectors = tall.float().tril(diagonal=-1) + first
        products = vectors.mT @ vectors
        inverse = products.triu(1) + torch.diag_embed(products.diagonal(dim1=-2, dim2=-1) / 2)
        heads = vectors[:, : vectors.shape[-1]].mT
        found = first - vectors @ torch.linalg.solve_triangular(inverse, heads, upper=True)
        found = found.to(matrix_SCI.dtype)
    rows: Tensor = found.mT if wide else found
    return rows
