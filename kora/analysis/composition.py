"""What each node of KoRA contributes to the composed vector.

Shapes: B images, N tokens, C d_comp, L nodes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kora.adapters import KoRA
from kora.adapters.graph.nodes import Node
from kora.analysis.low_rank import singular_values
from kora.analysis.redundancy import redundancy

__all__ = ["Contributions", "projection_spectrum"]


class Contributions:
    """Gathers, over batches, the norm of p_i and by how much c_L changes without it.

    contribution_i = sum over images ||c_L - c_L(p_i = 0)|| / sum over images ||c_L||, with all
    other nodes unchanged: what the node itself sends, not its effect on later nodes through its
    injected output. In float64, on a copy of the composer: values below 1e-15 are rounding.
    """

    def __init__(self, adapter: KoRA) -> None:
        self.keys = list(adapter.nodes)
        self._compose: nn.Module = copy.deepcopy(adapter.composer).cpu().double()
        self.images = 0
        self.composed = 0.0  # sums over images of norms
        self.vectors = [0.0] * len(self.keys)
        self.changes = [0.0] * len(self.keys)
        self._redundancy = 0.0

    @torch.no_grad()
    def observe(self, vectors: Sequence[Tensor], composed: Tensor) -> None:
        """Add the vectors p_1 ... p_L of a batch, (B, C) or (B, N, C); c_L is computed again."""
        given = [vector.detach().cpu().double() for vector in vectors]
        whole = self._compose(given)
        self.images += len(composed)
        self._redundancy += len(composed) * redundancy(given)
        self.composed += _sum_of_norms(whole)
        for i, vector in enumerate(given):
            self.vectors[i] += _sum_of_norms(vector)
            without = [*given[:i], torch.zeros_like(vector), *given[i + 1 :]]
            self.changes[i] += _sum_of_norms(whole - self._compose(without))

    def shares(self) -> dict[str, float]:
        """The contribution of each node, by its key; 0 if c_L is zero."""
        total = self.composed or 1.0
        return {key: change / total for key, change in zip(self.keys, self.changes, strict=True)}

    def vector_norms(self) -> dict[str, float]:
        """The mean over images of ||p_i||, by key."""
        images = max(self.images, 1)
        return {key: norm / images for key, norm in zip(self.keys, self.vectors, strict=True)}

    @property
    def redundancy(self) -> float:
        """The mean over images and pairs of nodes of |cos(p_i, p_j)|."""
        return self._redundancy / max(self.images, 1)

    @property
    def composed_norm(self) -> float:
        """The mean over images of ||c_L||."""
        return self.composed / max(self.images, 1)


def projection_spectrum(node: Node) -> list[float]:
    """Singular values of P B A of a node, or of its M (without alpha), largest first."""
    left_CR, right_RI = node.projection()
    if right_RI is None:
        return [float(value) for value in torch.linalg.svdvals(left_CR.detach().double())]
    return [float(value) for value in singular_values(left_CR.double(), right_RI)]


def _sum_of_norms(tensor: Tensor) -> float:
    """Sum over images of the norm of all tokens of an image together."""
    return float(tensor.flatten(1).norm(dim=1).sum())
