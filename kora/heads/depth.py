"""Depth heads: what they share, and DINOv2's linear one. DPT is in kora/heads/dpt.py.

Shapes: B images, N patch tokens (rows x columns of the grid), D width, P prefix tokens, L levels,
K bins, h and w height and width of the depth map.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.backbone.vit import Backbone, Features
from kora.heads.levels import arguments_of, checked_grid, four_blocks, require_cls

__all__ = ["DepthHead", "LinearDepth", "depth_of_bins"]

Levels = Literal[1, 4]

#: Added to every bin, so that a pixel without a positive logit gets the mean of all bins.
_FLOOR = 0.1
#: Logits are clamped here: far above any learnt one, and their sum still fits in float32.
_LIMIT = 1e30


class DepthHead(nn.Module, ABC):
    """From patch tokens to metres.

    Life cycle: the constructor only stores its arguments, under their names; `build` is called once
    with the backbone and creates the parameters; `forward` is called for every batch. The task
    passes the numbers that `blocks` returns to the backbone, whose `Features.levels` then hold the
    tokens of these blocks in that order.

    Args:
        min_depth_m: Nearest depth that the head can predict, in metres.
        max_depth_m: Farthest depth that the head can predict, in metres.

    Raises:
        ValueError: If not 0 < min_depth_m < max_depth_m, both finite.
    """

    def __init__(self, *, min_depth_m: float, max_depth_m: float) -> None:
        super().__init__()
        if not 0 < min_depth_m < max_depth_m < math.inf:  # also catches NaN
            raise ValueError(
                f"{type(self).__name__}: min_depth_m={min_depth_m}, max_depth_m={max_depth_m}; "
                "expected 0 < min_depth_m < max_depth_m, in metres. Indoors 0.001 and 10 are usual."
            )
        self.min_depth_m = min_depth_m
        self.max_depth_m = max_depth_m
        self.grid: tuple[int, int] | None = None

    @abstractmethod
    def blocks(self, depth: int) -> tuple[int, ...]:
        """Blocks (0-based) that the head reads of a backbone of `depth` blocks.

        Raises:
            ValueError: If the backbone has too few.
        """

    @abstractmethod
    def build(self, backbone: Backbone) -> None:
        """Create the parameters for this backbone.

        Raises:
            ValueError: If a setting does not fit the backbone.
        """

    @abstractmethod
    def forward(self, features: Features) -> Tensor:
        """Depth in metres, float32 (B, h, w), always inside [min_depth_m, max_depth_m]."""

    def extra_repr(self) -> str:
        return arguments_of(self)

    def _adopt(self, backbone: Backbone, *, without_cls: str | None) -> None:
        """Store the grid; `without_cls` is the setting that avoids CLS, None if CLS is not read."""
        assert self.grid is None, "build() is called once"
        if without_cls is not None:
            require_cls(type(self).__name__, backbone, without_cls)
        self.blocks(backbone.depth)  # raises if there are too few
        self.grid = backbone.grid

    def _check(self, features: Features, levels: int) -> tuple[int, int]:
        """Check that the features fit `build` and `blocks`; return rows and columns."""
        return checked_grid(features, self.grid, levels)


class LinearDepth(DepthHead):
    """One linear map of each patch to K depth bins; their weighted mean is the depth.

    Patch tokens of one or four blocks, each concatenated with its block's CLS token, are upsampled
    bilinearly and projected by a 1x1 convolution; with b = linspace(min, max, K)

        p_k = (relu(logit_k) + 0.1) / sum_j (relu(logit_j) + 0.1),    depth = sum_k p_k b_k.

    Projection and upsampling are both linear and bilinear weights sum to one, so the projection
    comes first, on upsample^2 fewer pixels, and CLS is projected once per image.
    Source: Oquab et al. 2023, arXiv:2304.07193, section 7.4, and the code released with it. Its
    backbones give tokens before the last norm, ours after it (`kora.backbone.vit.Level`).

    Args:
        levels: 1 reads the last block, 4 reads four equally spaced ones (`four_blocks`).
        cls: Concatenate each level's CLS token with its patch tokens.
        bins: K.
        min_depth_m: Depth of the first bin, in metres.
        max_depth_m: Depth of the last bin, in metres.
        upsample: Pixels of the depth map along one side of a patch.

    Raises:
        ValueError: For a number out of range, or `cls` with a backbone that has no CLS token.
    """

    reads = ("levels",)  # fields of `Features`; others need not be cached

    def __init__(
        self,
        *,
        levels: Levels = 1,
        cls: bool = True,
        bins: int = 256,
        min_depth_m: float = 1e-3,
        max_depth_m: float = 10.0,
        upsample: int = 4,
    ) -> None:
        super().__init__(min_depth_m=min_depth_m, max_depth_m=max_depth_m)
        if levels not in get_args(Levels):
            raise ValueError(
                f"LinearDepth: levels={levels}, expected 1 (the last block) or 4 (equally spaced)."
            )
        if bins < 2:
            raise ValueError(f"LinearDepth: bins={bins}, expected 2 or more.")
        if upsample < 1:
            raise ValueError(f"LinearDepth: upsample={upsample}, expected 1 or more.")
        self.levels: Levels = levels
        self.cls = cls
        self.bins = bins
        self.upsample = upsample

    def blocks(self, depth: int) -> tuple[int, ...]:
        """The last block, or four equally spaced ones."""
        return (depth - 1,) if self.levels == 1 else four_blocks(depth)

    def build(self, backbone: Backbone) -> None:
        """The 1x1 convolution: (L * D * (2 with CLS, else 1) + 1) * K numbers."""
        self._adopt(backbone, without_cls="cls: false" if self.cls else None)
        self.parts = 2 if self.cls else 1  # of one level: patch, CLS
        self.project = nn.Linear(self.levels * self.parts * backbone.width, self.bins)

    def forward(self, features: Features) -> Tensor:
        """Depth in metres, float32 (B, upsample * rows, upsample * columns)."""
        rows, columns = self._check(features, self.levels)
        weight_KLPD = self.project.weight.view(self.bins, self.levels, self.parts, -1)
        logits_BNK: Tensor = self.project.bias
        for number, level in enumerate(features.levels):
            logits_BNK = logits_BNK + F.linear(level.patches, weight_KLPD[:, number, 0])
            if self.cls:
                cls_B1D = level.prefix[:, :1]
                logits_BNK = logits_BNK + F.linear(cls_B1D, weight_KLPD[:, number, 1])
        # Half precision may have overflowed, and an infinity times a bilinear weight of 0 is NaN.
        logits_BNK = logits_BNK.float().clamp(-_LIMIT, _LIMIT)
        logits_BKhw = logits_BNK.view(-1, rows, columns, self.bins).permute(0, 3, 1, 2)
        if self.upsample > 1:
            logits_BKhw = F.interpolate(
                logits_BKhw, scale_factor=self.upsample, mode="bilinear", align_corners=False
            )
        return depth_of_bins(
            logits_BKhw, min_depth_m=self.min_depth_m, max_depth_m=self.max_depth_m
        )


def depth_of_bins(logits_BKhw: Tensor, *, min_depth_m: float, max_depth_m: float) -> Tensor:
    """Weighted mean (B, h, w) of K equally spaced depths; weights are relu(logit) + 0.1.

    Only two sums over the bins are needed, so the weights are not normalised one by one, and the
    logits are overwritten: one tensor of K bins is kept for backward. It is float32 even under
    autocast, as bfloat16 would move the mean by centimetres; channels-last logits are not copied.
    """
    device = logits_BKhw.device
    with torch.autocast(device.type, enabled=False):
        depths_K = torch.linspace(
            min_depth_m, max_depth_m, logits_BKhw.shape[1], dtype=torch.float32, device=device
        )
        sums_K2 = torch.stack([depths_K, torch.ones_like(depths_K)], dim=1)
        # A relu that also clamps an overflow of half precision.
        weights_BKhw = F.hardtanh(logits_BKhw.float(), 0.0, _LIMIT, inplace=True)
        sums_Bhw2 = weights_BKhw.permute(0, 2, 3, 1) @ sums_K2 + _FLOOR * sums_K2.sum(dim=0)
        depth_Bhw = sums_Bhw2[..., 0] / sums_Bhw2[..., 1]
        return depth_Bhw.clamp(min_depth_m, max_depth_m)  # rounding may pass the last bin
