"""Feedback: adds the composition so far to the tokens after later blocks.

Shapes: B images, N tokens, C d_comp, D width
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kora.adapters.graph.composers import Composer
from kora.adapters.graph.nodes import Node
from kora.backbone.sites import require_blocks
from kora.backbone.vit import Backbone

__all__ = ["Feedback"]


class Feedback(nn.Module):
    """x_n + alpha * U_i c_i for every token after block i, c_i composed of all nodes up to there.

    U_i (D, C) starts at zero. Gradients pass only through the blocks after `from_block`: before it,
    nothing that trains has reached the tokens.
    Source: after Fu et al. 2024, arXiv:2401.17225 (DTL), whose sum of low-rank outputs goes back
    into later blocks token by token.

    Args:
        from_block: The first block after which it adds; negative numbers count from the end. After
            the last block, it affects only the features, as no node follows.
    """

    def __init__(self, from_block: int) -> None:
        super().__init__()
        self.from_block = from_block
        self.ups = nn.ParameterDict()
        #: Vectors of the nodes that are composed so far in this pass.
        self.sent: list[Tensor] = []
        self._nodes: tuple[Node, ...] = ()
        self._composer: tuple[Composer, ...] = ()  # a tuple is not registered as a submodule
        self._until: dict[int, int] = {}
        self.alpha = 1.0

    def build(
        self, backbone: Backbone, nodes: Mapping[str, Node], composer: Composer, d_comp: int,
        alpha: float,
    ) -> None:  # fmt: skip
        """Hook it in; C * D numbers per block.

        Raises:
            ValueError: For an unknown block, or if no node is in a block up to it.
        """
        (first,) = require_blocks(backbone, [self.from_block])
        of_block = [int(key[1:3]) for key in nodes]
        if not of_block or min(of_block) > first:
            raise ValueError(
                f"Feedback: from_block={self.from_block}, and no node of the composition is in "
                "a block up to it. Use a later block, or earlier nodes."
            )
        self._nodes, self._composer, self.alpha = tuple(nodes.values()), (composer,), alpha
        for node in self._nodes:
            node.echoes = True
        for i in range(first, backbone.depth):
            self._until[i] = sum(block <= i for block in of_block)
            self.ups[f"b{i:02d}_feedback"] = nn.Parameter(torch.zeros(backbone.width, d_comp))
            backbone.model.blocks[i].register_forward_hook(partial(self._add, i))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "sent": []}  # a copy has seen no batch

    def _add(self, number: int, module: nn.Module, inputs: tuple[Any, ...], x: Tensor) -> Tensor:
        """Tokens (B, N, D) plus the composition up to block `number`."""
        composed = self._composer[0](self._vectors(number))
        delta = self.alpha * composed @ self.ups[f"b{number:02d}_feedback"].T
        added: Tensor = delta if delta.ndim == 3 else delta[:, None]
        return x + added

    def _vectors(self, number: int) -> list[Tensor]:
        """What is composed after block `number`: the vectors of all nodes up to there."""
        before = self._until.get(number - 1, 0)
        vectors = self.sent[:before] + self._own(number)
        self.sent = vectors + self.sent[len(vectors) :]
        return vectors

    def _own(self, number: int) -> list[Tensor]:
        """The vectors of the nodes of a block, computed anew when backward recomputes it."""
        nodes = self._nodes[self._until.get(number - 1, 0) : self._until[number]]
        return [node.vector(node.seen()) for node in nodes]
