"""Boxes around the visible solids of rendered scenes.

Shapes: n images, S solids a scene, H height, W width
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from datamodules.scenes.layout import SceneSplit, sample_scenes
from datamodules.splits import IntArray

__all__ = ["solid_boxes"]

_LEAST_PIXELS = 12  # that show of an object with a box


def solid_boxes(
    indices: IntArray, mask_nHW: Tensor, *, seed: int, split: SceneSplit
) -> dict[str, Tensor]:
    """Boxes of what `mask_nHW` shows of each solid, as `render` made it of these indices.

    Returns:
        `boxes` float32 (n, S, 4), x1, y1, x2, y2 in pixels, and `box_label` int64 (n, S), the place
        in `KINDS`; zeros and -1 for a solid that fewer than 12 pixels show.
    """
    with np.errstate(over="ignore"):
        scenes = sample_scenes(np.asarray(indices), seed=seed, split=split)
    kinds_nS = torch.from_numpy(np.stack([solids.kind_n for solids in scenes.solids], axis=1))
    numbers_S = torch.arange(1, len(scenes.solids) + 1, dtype=mask_nHW.dtype)
    seen_nSHW = mask_nHW[:, None] == numbers_S[:, None, None]
    shows_nS = seen_nSHW.flatten(2).sum(dim=2) >= _LEAST_PIXELS
    (left, right), (top, bottom) = _ends(seen_nSHW.any(dim=2)), _ends(seen_nSHW.any(dim=3))
    boxes_nS4 = torch.stack((left, top, right, bottom), dim=2) * shows_nS[..., None]
    return {
        "boxes": boxes_nS4.float(),
        "box_label": torch.where(shows_nS, kinds_nS.long(), -1),
    }


def _ends(seen_nSL: Tensor) -> tuple[Tensor, Tensor]:
    """The first place that is seen along a side, and the one after the last."""
    seen_nSL = seen_nSL.int()
    return seen_nSL.argmax(dim=2), seen_nSL.shape[2] - seen_nSL.flip(2).argmax(dim=2)
