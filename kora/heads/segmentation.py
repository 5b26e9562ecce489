"""Segmentation heads: what they share, and DINOv2's linear one.

DPT is in kora/heads/dpt.py, the decoder with queries in kora/heads/queries.py.

Shapes: B images, N patch tokens (rows x columns of the grid), D width, L levels, K classes, h and w
height and width of the logits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.backbone.vit import Backbone, Features
from kora.heads.levels import arguments_of, checked_grid, four_blocks, require_cls

__all__ = ["LinearSegmentation", "SegmentationHead"]

Levels = Literal[1, 4]


class SegmentationHead(nn.Module, ABC):
    """From patch tokens to logits of classes.

    Life cycle: the constructor only stores its arguments, under their names; `build` is called once
    with the backbone and creates the parameters; `forward` is called for every batch. The task
    passes the numbers that `blocks` returns to the backbone, whose `Features.levels` then hold the
    tokens of these blocks in that order.
    """

    #: Fields of `Features` that it reads; others need not be cached.
    reads: tuple[str, ...] = ("levels",)

    #: What the name of a run adds for it: nothing for the linear head on four levels.
    suffix: str

    def __init__(self) -> None:
        super().__init__()
        self.grid: tuple[int, int] | None = None

    @abstractmethod
    def blocks(self, depth: int) -> tuple[int, ...]:
        """Blocks (0-based) that the head reads of a backbone of `depth` blocks.

        Raises:
            ValueError: If the backbone has too few.
        """

    @abstractmethod
    def build(self, backbone: Backbone, num_classes: int, composed: int | None = None) -> None:
        """Create the parameters for this backbone and K classes.

        `composed` is the width of `Features.query`, if the adapter sends it.

        Raises:
            ValueError: If a setting does not fit the backbone.
        """

    @abstractmethod
    def forward(self, features: Features) -> Tensor:
        """Logits (B, K, h, w), at any size of the same proportions as the grid."""

    def extra_repr(self) -> str:
        return arguments_of(self)

    def _adopt(self, backbone: Backbone, *, without_cls: str | None = None) -> None:
        """Store the grid; `without_cls` is the setting that avoids CLS, None if CLS is not read."""
        assert self.grid is None, "build() is called once"
        if without_cls is not None:
            require_cls(type(self).__name__, backbone, without_cls)
        self.blocks(backbone.depth)  # raises if there are too few
        self.grid = backbone.grid

    def _check(self, features: Features, levels: int) -> tuple[int, int]:
        """Check that the features fit `build` and `blocks`; return rows and columns."""
        return checked_grid(features, self.grid, levels)


class LinearSegmentation(SegmentationHead):
    """Batch normalisation and one linear map of each patch to K logits.

    The patch tokens of one or four blocks are concatenated. Logits have the size of the grid; the
    task enlarges them bilinearly.
    Source: Oquab et al. 2023, arXiv:2304.07193, section 7.4 (`linear` and `+ms`), and the code
    released with it. As in DINOv3's release, tokens come after the last norm (`Level`).

    Args:
        levels: 1 reads the last block, 4 reads four equally spaced ones (`four_blocks`).
        dropout: Probability with which whole channels are dropped in training.

    Raises:
        ValueError: For another number of levels, or a dropout outside [0, 1).
    """

    reads = ("levels",)

    def __init__(self, *, levels: Levels = 1, dropout: float = 0.1) -> None:
        super().__init__()
        if levels not in get_args(Levels):
            raise ValueError(
                f"LinearSegmentation: levels={levels}, expected 1 (the last block) or 4 (equally "
                "spaced)."
            )
        if not 0 <= dropout < 1:
            raise ValueError(
                f"LinearSegmentation: dropout={dropout}, expected a probability in [0, 1)."
            )
        self.levels: Levels = levels
        self.dropout = dropout
        self.suffix = "" if levels == 4 else "-one-level"

    def blocks(self, depth: int) -> tuple[int, ...]:
        """The last block, or four equally spaced ones."""
        return (depth - 1,) if self.levels == 1 else four_blocks(depth)

    def build(self, backbone: Backbone, num_classes: int, composed: int | None = None) -> None:
        """Create the normalisation and the linear map."""
        self._adopt(backbone)
        channels = self.levels * backbone.width
        self.norm = nn.BatchNorm1d(channels)
        self.project = nn.Linear(channels, num_classes)
        nn.init.normal_(self.project.weight, std=0.01)
        nn.init.zeros_(self.project.bias)

    def forward(self, features: Features) -> Tensor:
        """Logits (B, K, rows, columns)."""
        rows, columns = self._check(features, self.levels)
        tokens_BDN = torch.cat([level.patches for level in features.levels], dim=-1).mT
        normed_BDN = self.norm(tokens_BDN)
        if self.dropout:
            normed_BDN = F.dropout1d(normed_BDN, self.dropout, self.training)
        logits_BNK: Tensor = self.project(normed_BDN.mT)
        return torch.unflatten(logits_BNK.mT, -1, (rows, columns))
