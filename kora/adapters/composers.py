"""Composers: how the node vectors p_1 ... p_L become one composed vector c_L.

Shapes: L nodes, C d_comp; `...` is (B,) for pooled nodes and (B, N) for token-wise ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Composer", "Sequential"]


class Composer(nn.Module, ABC):
    """Turns the node vectors, in forward order, into the composed vector."""

    @abstractmethod
    def build(self, num_nodes: int, d_comp: int) -> None:
        """Create the parameters for L nodes of width C."""

    @abstractmethod
    def forward(self, nodes: Sequence[Tensor]) -> Tensor:
        """L tensors (..., C), first node first, to (..., C)."""


class Sequential(Composer):
    """The paper's chain: c_1 = Phi_1(p_1); c_i = Phi_i(p_i + Psi_{i-1}(c_{i-1})).

    Phi and Psi are each a linear layer and GELU, as in the published notebook. Beware: the
    gradient that reaches p_i shrinks by more than a factor of ten a stage.
    Source: KoRA paper (2025), section 2, equation 3.
    """

    def build(self, num_nodes: int, d_comp: int) -> None:
        """L maps Phi and L - 1 maps Psi, each with C * C + C parameters."""
        self.phi = nn.ModuleList(nn.Linear(d_comp, d_comp) for _ in range(num_nodes))
        self.psi = nn.ModuleList(nn.Linear(d_comp, d_comp) for _ in range(num_nodes - 1))

    def forward(self, nodes: Sequence[Tensor]) -> Tensor:
        """L tensors (..., C) to c_L (..., C)."""
        composed = F.gelu(self.phi[0](nodes[0]))
        for node, phi, psi in zip(nodes[1:], self.phi[1:], self.psi, strict=True):
            composed = F.gelu(phi(node + F.gelu(psi(composed))))
        return composed
