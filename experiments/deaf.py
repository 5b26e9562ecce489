"""Deaf twins: parts of KoRA that have the parameters of the original and hear only their own layer.

Shapes: as in `kora/adapters/graph/`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from kora.adapters.graph.composers import ResidualSequential
from kora.adapters.graph.feedback import Feedback

__all__ = ["DeafFeedback", "DeafResidual"]


class DeafResidual(ResidualSequential):
    """c = sum_i p_i + Phi_i(norm(p_i)): each Phi_i sees its own node, and no earlier ones."""

    def forward(self, nodes: Sequence[Tensor]) -> Tensor:
        """L tensors (..., C), or the first few of them, to c (..., C)."""
        pairs = zip(nodes, self.phi, strict=False)
        own = [node + phi(F.layer_norm(node, node.shape[-1:])) for node, phi in pairs]
        total: Tensor = sum(own[1:], start=own[0])
        return total


class DeafFeedback(Feedback):
    """x_n + alpha * U_i c_i, with c_i composed of the nodes of block i alone.

    Args:
        from_block: As in `Feedback`.
        loud: Repeat what these nodes send until it is as many vectors as `Feedback` composes there.
            No `Sum` of as many vectors of the same length is larger.
    """

    def __init__(self, from_block: int, loud: bool = False) -> None:
        super().__init__(from_block)
        self.loud = loud

    def _vectors(self, number: int) -> list[Tensor]:
        own = self._own(number)
        return own * (self._until[number] // len(own)) if self.loud else own
