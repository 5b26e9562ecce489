"""Built heads and features for them, each in one call."""

from __future__ import annotations

from typing import Any

import torch

from kora.backbone.vit import Backbone, Features, Level
from kora.heads import (
    DepthHead,
    DPTDepth,
    DPTSegmentation,
    LinearDepth,
    LinearSegmentation,
    QuerySegmentation,
    SegmentationHead,
)

__all__ = ["HEADS", "SEGMENTERS", "SMALL", "features_for", "made", "made_segmenter"]

HEADS = [LinearDepth, DPTDepth]
SMALL: dict[type[DepthHead], dict[str, Any]] = {LinearDepth: {}, DPTDepth: {"features": 8}}


def made(kind: type[DepthHead], backbone: Backbone, *, seed: int = 4, **options: Any) -> DepthHead:
    """A built head of seeded random numbers."""
    torch.manual_seed(seed)
    head = kind(**{**SMALL[kind], **options})
    head.build(backbone)
    return head


#: Small arguments of the segmentation heads.
SEGMENTERS: dict[type[SegmentationHead], dict[str, Any]] = {
    LinearSegmentation: {"levels": 4},
    DPTSegmentation: {"features": 8},
    QuerySegmentation: {"width": 16, "heads": 2},
}


def made_segmenter(
    kind: type[SegmentationHead],
    backbone: Backbone,
    *,
    classes: int = 5,
    composed: int | None = None,
    **options: Any,
) -> SegmentationHead:
    """A built head of seeded random numbers."""
    torch.manual_seed(4)
    head = kind(**{**SEGMENTERS[kind], **options})
    head.build(backbone, classes, composed)
    return head


def features_for(
    head: DepthHead | SegmentationHead, backbone: Backbone, *, images: int = 2, scale: float = 1.0
) -> Features:
    """Seeded noise of the shapes that this backbone gives to this head."""
    generator = torch.Generator().manual_seed(5)
    rows, columns = backbone.grid
    tokens = [
        scale * torch.randn(images, count, backbone.width, generator=generator)
        for _ in head.blocks(backbone.depth)
        for count in (rows * columns, backbone.num_prefix_tokens)
    ]
    levels = tuple(Level(*pair) for pair in zip(tokens[::2], tokens[1::2], strict=True))
    return Features(levels[-1].patches.mean(1), levels[-1].patches, levels[-1].prefix, levels)
