"""What torchvision's detectors need to read the levels of a pyramid.

`kora.heads.detection` imports it when it builds a head: torchvision is large.

Shapes: B images, C channels of the pyramid, A places or anchors of a level
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

__all__ = ["Anchors", "Levels", "NoTransform", "Pictures", "in_proportions", "pyramid_level"]

_RATIOS = (0.5, 1.0, 2.0)


def pyramid_level(width: int, channels: int, scale: float) -> nn.Sequential:
    """From the map (B, D, rows, columns) of the patches to a level of the pyramid."""
    halves = [width // 2, width // 4]
    resized: dict[float, list[nn.Module]] = {
        4.0: [
            nn.ConvTranspose2d(width, halves[0], 2, 2),
            LayerNorm2d(halves[0]),
            nn.GELU(),
            nn.ConvTranspose2d(halves[0], halves[1], 2, 2),
        ],
        2.0: [nn.ConvTranspose2d(width, halves[0], 2, 2)],
        1.0: [],
        0.5: [nn.MaxPool2d(2, 2, ceil_mode=True)],
    }
    last = {4.0: halves[1], 2.0: halves[0]}.get(scale, width)
    return nn.Sequential(
        *resized[scale],
        nn.Conv2d(last, channels, 1, bias=False),
        LayerNorm2d(channels),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        LayerNorm2d(channels),
    )


def in_proportions(sides: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Anchors (height, width) of the same areas in three proportions."""
    return [
        (rows * math.sqrt(ratio), columns / math.sqrt(ratio))
        for ratio in _RATIOS
        for rows, columns in sides
    ]


class Anchors(AnchorGenerator):  # type: ignore[misc]
    """Anchors of these sizes (height, width) at the centre of each cell of each level.

    torchvision's own ones take strides that are whole numbers of pixels, and lie on the corners.
    """

    def __init__(
        self, strides: list[tuple[float, float]], sizes: list[list[tuple[float, float]]]
    ) -> None:
        super().__init__(((1.0,),) * len(strides), ((1.0,),) * len(strides))
        self.strides = strides
        self.sides = sizes

    def num_anchors_per_location(self) -> list[int]:
        """Anchors at each place of each level."""
        return [len(of_level) for of_level in self.sides]

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """The anchors (A, 4) of all levels, for each image."""
        found = []
        levels = zip(feature_maps, self.strides, self.sides, strict=True)
        for level, (row_stride, column_stride), sizes in levels:
            options: dict[str, Any] = {"dtype": torch.float32, "device": level.device}
            rows_h = (torch.arange(level.shape[-2], **options) + 0.5) * row_stride
            columns_w = (torch.arange(level.shape[-1], **options) + 0.5) * column_stride
            y, x = torch.meshgrid(rows_h, columns_w, indexing="ij")
            centres_A14 = torch.stack([x, y, x, y], dim=-1).view(-1, 1, 4)
            half = torch.tensor([(-w / 2, -h / 2, w / 2, h / 2) for h, w in sizes], **options)
            found.append((centres_A14 + half).view(-1, 4))
        anchors_A4 = torch.cat(found)
        return [anchors_A4] * len(image_list.image_sizes)


class Pictures(list[Tensor]):
    """What stands for the images in a detector: their sizes, and the levels of the pyramid."""

    def __init__(self, levels: list[Tensor], size: tuple[int, int]) -> None:
        super().__init__([torch.empty(0, *size)] * len(levels[0]))
        self.levels = OrderedDict((str(n), level) for n, level in enumerate(levels))
        self.sizes = [size] * len(levels[0])


class NoTransform(nn.Module):
    """In the place of the detector's transform: neither images nor boxes change."""

    def forward(self, pictures: Pictures, truths: Any) -> tuple[ImageList, Any]:
        return ImageList(pictures.levels, pictures.sizes), truths

    def postprocess(self, found: Any, *sizes: Any) -> Any:
        """The detections as they are."""
        return found


class Levels(nn.Module):
    """In the place of the detector's backbone: passes the levels on."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = channels

    def forward(self, levels: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
        return levels
