"""Deaf twins: parts of KoRA that have the parameters of the original and hear only their own layer.

Shapes: as in `kora/adapters/graph/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

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
    """x_n + alpha * U_i c_i, with c_i composed of the nodes of block i alone."""

    def _add(self, number: int, module: nn.Module, inputs: tuple[Any, ...], x: Tensor) -> Tensor:
        before = self._until.get(number - 1, 0)
        own = [node.vector(node.seen()) for node in self._nodes[before : self._until[number]]]
        composed = self._composer[0](own)
        delta = self.alpha * composed @ self.ups[f"b{number:02d}_feedback"].T
        added: Tensor = delta if delta.ndim == 3 else delta[:, None]
        return x + added
