"""A spatial step of token nodes: each channel looks at the neighbours on the grid of patches.

Shapes: B images, T tokens (P prefix tokens, then the patches, row by row), C channels, h and w rows
and columns of the grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.backbone.vit import Backbone

__all__ = ["GridMix"]


class GridMix(nn.Module):
    """x + a 3x3 convolution of each channel over the patch tokens; it starts as x.

    Prefix tokens, and prompts at the end, are left as they are. For dense tasks, adapters with such
    a step are reported ahead of those without (Yin et al. 2025, Mona, arXiv:2408.08345).
    """

    def __init__(self, channels: int, backbone: Backbone) -> None:
        super().__init__()
        self.first = backbone.num_prefix_tokens
        self.grid = backbone.grid
        self.kernel_C133 = nn.Parameter(torch.zeros(channels, 1, 3, 3))

    def forward(self, x_BTC: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        rows, columns = self.grid
        end = self.first + rows * columns
        patches_BChw = torch.unflatten(x_BTC[:, self.first : end].mT, -1, (rows, columns))
        mixed = F.conv2d(patches_BChw, self.kernel_C133, padding=1, groups=len(self.kernel_C133))
        added_BTC = F.pad(mixed.flatten(2).mT, (0, 0, self.first, x_BTC.shape[1] - end))
        return x_BTC + added_BTC.to(x_BTC.dtype)
