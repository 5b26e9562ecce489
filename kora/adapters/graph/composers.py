"""Composers: how the node vectors p_1 ... p_L become one composed vector c_L.

Shapes: L nodes, C d_comp; `...` is (B,) for pooled nodes and (B, N) for token-wise ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "Composer",
    "DepthAttention",
    "MaxMeanLast",
    "ResidualSequential",
    "Sequential",
    "Sum",
]


class Composer(nn.Module, ABC):
    """Turns the node vectors, in forward order, into the composed vector."""

    @abstractmethod
    def build(self, num_nodes: int, d_comp: int) -> None:
        """Create the parameters for L nodes of width C."""

    @abstractmethod
    def forward(self, nodes: Sequence[Tensor]) -> Tensor:
        """L tensors (..., C), first node first, to (..., C); with feedback also the first few."""


class Sequential(Composer):
    """The paper's chain: c_1 = Phi_1(p_1); c_i = Phi_i(p_i + Psi_{i-1}(c_{i-1})).

    Phi and Psi are each a linear layer and GELU, as in the published notebook. Beware: the
    gradient that reaches p_i shrinks by about a factor of ten per stage.
    Source: KoRA paper (2025), section 2, equation 3.
    """

    def build(self, num_nodes: int, d_comp: int) -> None:
        """L maps Phi and L - 1 maps Psi, each with C * C + C parameters."""
        self.phi = nn.ModuleList(nn.Linear(d_comp, d_comp) for _ in range(num_nodes))
        self.psi = nn.ModuleList(nn.Linear(d_comp, d_comp) for _ in range(num_nodes - 1))

    def forward(self, nodes: Sequence[Tensor]) -> Tensor:
        """L tensors (..., C), or the first few of them, to the last c (..., C)."""
        composed = F.gelu(self.phi[0](nodes[0]))
        for node, phi, psi in zip(nodes[1:], self.phi[1:], self.psi, strict=False):
            composed = F.gelu(phi(node + F.gelu(psi(composed))))
        return composed


class Sum(Composer):
    """c = p_1 + ... + p_L: every node reaches the readout directly, and nothing is composed.

    The control for every other composer. It has no parameters.
    """

    def build(self, num_nodes: int, d_comp: int) -> None:
        """Nothing to create."""

    def forward(self, nodes: Sequence[Tensor]) -> Tensor:
        """L tensors (..., C) to their sum (..., C)."""
        return torch.stack(tuple(nodes)).sum(dim=0)


class ResidualSequential(Composer):
    """A chain with skips: s_i = c_{i-1} + p_i, c_i = s_i + Phi_i(norm(s_i)), c_0 = 0.

    The norm is LayerNorm without parameters. Phi_i is a linear layer, GELU and a linear layer that
    starts at zero, so it starts as the sum, and p_i gets the gradient of c_L. Compared with the
    paper's chain (`Sequential`), it adds the skip and the norm.
    """

    def build(self, num_nodes: int, d_comp: int) -> None:
        """L maps Phi, each with 2 (C * C + C) parameters."""
        self.phi = nn.ModuleList(self.stage(d_comp) for _ in range(num_nodes))

    def stage(self, d_comp: int) -> nn.Module:
        """One Phi, (..., C) to (..., C); zero at the start."""
        last = nn.Linear(d_comp, d_comp)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        return nn.Sequential(nn.Linear(d_comp, d_comp), nn.GELU(), last)

    def forward(self, nodes: Sequence[Tensor]) -> Tensor:
        """L tensors (..., C), or the first few of them, to the last c (..., C)."""
        composed = torch.zeros_like(nodes[0])
        for node, phi in zip(nodes, self.phi, strict=False):
            summed = composed + node
            composed = summed + phi(F.layer_norm(summed, summed.shape[-1:]))
        return composed


class DepthAttention(Composer):
    """Node i attends to the c_j of earlier nodes, separately for each image, and adds the result.

    c_i = p_i + sum_{j<i} a_ij c_j with a_i = softmax_j(q_i . norm(c_j) / sqrt(C)), and the readout
    gets sum_j b_j c_j with b = softmax_j(q . norm(c_j) / sqrt(C)) over all j. The norm is RMSNorm
    without parameters. Queries q_i (C) start at zero, so each starts as an average; the values c_j
    are not projected. Nothing is averaged over the batch: the result for an image does not depend
    on the others.
    Source: KoRA paper (2025), future work ("dynamic compositional attention"); learned queries and
    plain values as in Kimi Team 2026, arXiv:2603.15031.
    """

    def build(self, num_nodes: int, d_comp: int) -> None:
        """L queries of width C: for nodes 2 ... L, and for the readout."""
        self.query_LC = nn.Parameter(torch.zeros(num_nodes, d_comp))

    def forward(self, nodes: Sequence[Tensor]) -> Tensor:
        """L tensors (..., C), or the first few of them, to (..., C)."""
        found = [nodes[0]]
        for i, node in enumerate(nodes[1:]):
            found.append(node + self._look(found, self.query_LC[i]))
        return self._look(found, self.query_LC[-1])

    def _look(self, found: Sequence[Tensor], query_C: Tensor) -> Tensor:
        """The mean (..., C) of J tensors, weighted by their softmax scores for a query."""
        values = torch.stack(tuple(found), dim=-2)  # (..., J, C)
        width = values.shape[-1]
        keys = F.rms_norm(values, (width,))
        weights = torch.softmax(keys @ query_C / width**0.5, dim=-1)  # (..., J)
        return (weights.unsqueeze(-2) @ values).squeeze(-2)


class MaxMeanLast(Composer):
    """c = W [max_i p_i; mean_i p_i; p_L] + b, number by number over the nodes.

    Source: Rein (Wei et al. 2024, arXiv:2312.04265, section 3.3), which composes the tokens of its
    layers so.
    """

    def build(self, num_nodes: int, d_comp: int) -> None:
        """W (C, 3 C) and b."""
        self.mix = nn.Linear(3 * d_comp, d_comp)

    def forward(self, nodes: Sequence[Tensor]) -> Tensor:
        """L tensors (..., C), or the first few of them, to (..., C)."""
        stacked = torch.stack(tuple(nodes))
        parts = (stacked.amax(dim=0), stacked.mean(dim=0), nodes[-1])
        composed: Tensor = self.mix(torch.cat(parts, dim=-1))
        return composed
