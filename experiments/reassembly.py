"""What a decoder's four levels read: the nodes of every block up to a level, or of its own part.

Shapes: L nodes, one a block, C d_comp, `...` is (B, T), B images, T tokens, D width
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.adapters import Composer, Readout
from kora.adapters.arguments import require_choice
from kora.backbone.vit import Features, Level
from kora.heads.levels import four_blocks

__all__ = ["LevelReadout", "LevelSums"]

Hears = Literal["earlier", "own"]


class LevelSums(Composer):
    """Four sums of node vectors: c_k of all nodes up to level k, or of those behind level k - 1.

    The levels are those of the dense heads (`four_blocks`), so every block needs one node. There
    are no parameters.

    Args:
        hears: `earlier`, all up to the level; `own`, the deaf twin, the level's part alone.

    Raises:
        ValueError: For another choice.
    """

    def __init__(self, hears: Hears = "earlier") -> None:
        super().__init__()
        require_choice("LevelSums", "hears", hears, get_args(Hears))
        self.hears = hears

    def build(self, num_nodes: int, d_comp: int) -> None:
        """Nothing to create."""
        self.ends = [block + 1 for block in four_blocks(num_nodes)]

    def forward(self, nodes: Sequence[Tensor]) -> Tensor:
        """L tensors (..., C) to (..., 4 C)."""
        starts = [0] * 4 if self.hears == "earlier" else [0, *self.ends[:-1]]
        parts = zip(starts, self.ends, strict=True)
        sums = [torch.stack(tuple(nodes[start:end])).sum(dim=0) for start, end in parts]
        return torch.cat(sums, dim=-1)


class LevelReadout(Readout):
    """x_n + alpha * U_k c_kn for every token n of level k, and of the last block for k = 4.

    U_k (D, C) starts at zero. Only for `LevelSums` and heads that read four levels.
    """

    per_token = True
    starts_closed = True

    def build(self, d_comp: int, width: int) -> None:
        """Four matrices."""
        self.ups = nn.ParameterList(torch.zeros(width, d_comp) for _ in range(4))

    def forward(self, features: Features, composed: Tensor, alpha: float) -> Features:
        """Features with alpha * U_k c_k of (B, T, 4 C) added, token by token."""
        parts = composed.chunk(4, dim=-1)
        added = [alpha * F.linear(c, up) for c, up in zip(parts, self.ups, strict=True)]
        prefix = features.prefix.shape[1]
        levels = tuple(
            Level(level.patches + one[:, prefix:], level.prefix + one[:, :prefix])
            for level, one in zip(features.levels, added, strict=True)
        )
        return features._replace(
            patches=features.patches + added[-1][:, prefix:],
            prefix=features.prefix + added[-1][:, :prefix],
            levels=levels,
        )
