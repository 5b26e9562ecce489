"""What the nodes of a refined KoRA look like.

Shapes: S summaries of the tokens (1, or 2 for the pool `both`), I input width, C d_comp.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from kora.adapters.arguments import require_choice, require_probability

__all__ = ["NodeForm"]

Orthogonal = Literal["none", "hard", "soft"]
NodeInit = Literal["default", "zero"]


class NodeForm(nn.Module):
    """What the nodes of a refined KoRA look like.

    Args:
        norm: LayerNorm without parameters on what a node reads.
        direct: One matrix (C, I) in place of P B A: the same functions where C <= R, with fewer
            numbers, as B and P of the output's width are not needed.
        shared: One matrix for the same site of all blocks, with a scale for each block. Only with
            `direct`.
        dropout: Of what a node reads, in training.
        node_dropout: Share of images for which a node says nothing, in training.
        orthogonal: `hard`: the rows of each M are orthonormal at every step (Householder
            reflections); weight decay draws them to single channels. `soft`: a penalty on what
            the matrices of two nodes that read the same width have in common. Only with `direct`,
            and not `shared`.
        penalty: Factor of the soft penalty in the loss.
        init: Of each M: that of a linear layer (`default`), for readouts that start at zero, or
            `zero`, for those that do not. Only with `direct`, and without `orthogonal`.

    Raises:
        ValueError: For a probability outside [0, 1), or settings that exclude each other.
    """

    def __init__(
        self,
        *,
        norm: bool = True,
        direct: bool = True,
        shared: bool = False,
        dropout: float = 0.0,
        node_dropout: float = 0.0,
        orthogonal: Orthogonal = "none",
        penalty: float = 0.0,
        init: NodeInit = "default",
    ) -> None:
        super().__init__()
        require_probability("NodeForm", dropout=dropout, node_dropout=node_dropout)
        require_choice("NodeForm", "orthogonal", orthogonal, get_args(Orthogonal))
        if shared and not direct:
            raise ValueError("NodeForm: shared=True needs direct=True: it is the matrix that is.")
        if orthogonal != "none" and (shared or not direct):
            raise ValueError(
                f"NodeForm: orthogonal='{orthogonal}' needs direct=True and shared=False: it is "
                "about the matrix of each node."
            )
        if (penalty > 0) != (orthogonal == "soft"):
            raise ValueError(
                f"NodeForm: penalty={penalty} with orthogonal='{orthogonal}': a factor above 0 "
                "goes with orthogonal='soft', and with nothing else."
            )
        require_choice("NodeForm", "init", init, get_args(NodeInit))
        if init == "zero" and (orthogonal != "none" or not direct):
            raise ValueError(
                f"NodeForm: init='zero' needs direct=True and orthogonal='none', and there are "
                f"direct={direct} and orthogonal='{orthogonal}': it is about the one matrix of a "
                "node, and no row of length 1 is zero."
            )
        self.init: NodeInit = init
        self.norm = norm
        self.direct = direct
        self.shared = shared
        self.dropout = dropout
        self.node_dropout = node_dropout
        self.orthogonal: Orthogonal = orthogonal
        self.penalty = penalty
        self.matrices = nn.ParameterDict()

    def share(self, site: str, shape: Sequence[int]) -> None:
        """Make the matrix of a site name, unless a node of another block has."""
        if site not in self.matrices:
            self.matrices[site] = nn.Parameter(self.started(shape))

    def started(self, shape: Sequence[int]) -> Tensor:
        """M (S, C, I) at zero, or with nn.Linear's start for S I inputs.

        Where its rows are to be orthonormal these are the reflections' vectors: below the 1 on the
        diagonal of length 1 too, as QR has them of random matrices. Shorter ones would hardly
        reflect, and row c of every node would lean to channel c.
        """
        if self.init == "zero":
            return torch.zeros(*shape)
        if self.orthogonal == "hard":
            bound = math.sqrt(3 / max(shape[1:]))
        else:
            bound = 1 / math.sqrt(shape[0] * shape[-1])
        return torch.empty(*shape).uniform_(-bound, bound)

    def of_site(self, site: str) -> Tensor:
        """The matrix (S, C, I) of a site name."""
        matrix_SCI: Tensor = self.matrices[site]
        return matrix_SCI


def orthogonal(matrix_SCI: Tensor) -> Tensor:
    """Matrices (S, C, I) with orthonormal rows (columns, where C > I), from any numbers.

    The product of Householder reflections whose vectors v are the columns below the diagonal: what
    `torch.nn.utils.parametrizations.orthogonal` computes with `householder`, as a function, as
    parametrised modules cannot be pickled. In closed form, I - V T V^T with a triangular T of which
    the inverse is known (the UT transform, Joffrain et al. 2006, doi:10.1145/1141885.1141886):
    nothing goes reflection by reflection, forward or backward. In float32; orthonormal to 1e-5,
    less so where a GPU may multiply in TF32.
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
