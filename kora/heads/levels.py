"""What the heads of dense tasks share: which blocks they read, and the grid of their tokens."""

from __future__ import annotations

import inspect
import math

from torch import nn

from kora.backbone.vit import Backbone, Features

__all__ = ["arguments_of", "checked_grid", "four_blocks", "require_cls"]


def four_blocks(depth: int) -> tuple[int, ...]:
    """Blocks floor(depth * k / 4) - 1 for k = 1 to 4: ends of four (nearly) equal parts.

    12 blocks: 2, 5, 8, 11, as in DINOv2 and DPT; 24: 5, 11, 17, 23; 6: 0, 2, 3, 5.

    Raises:
        ValueError: For fewer than four blocks.
    """
    if depth < 4:
        raise ValueError(
            f"Four levels need four blocks, and the backbone has {depth}. Use a linear head with "
            "levels: 1."
        )
    return tuple(depth * part // 4 - 1 for part in range(1, 5))


def require_cls(head: str, backbone: Backbone, setting: str) -> None:
    """Refuse a backbone without a CLS token; `setting` of the head avoids CLS.

    Raises:
        ValueError: For such a backbone.
    """
    if not backbone.has_cls:
        raise ValueError(
            f"{head} reads the CLS token, and '{backbone.name}' has none. Set "
            f"model.head.init_args.{setting}, or take a backbone with a CLS token."
        )


def checked_grid(features: Features, grid: tuple[int, int] | None, levels: int) -> tuple[int, int]:
    """Rows and columns of the tokens, after a check that the features are those of the grid."""
    assert grid is not None, "build() comes first"
    assert len(features.levels) == levels, "the backbone was not asked for blocks()"
    assert features.levels[0].patches.shape[1] == math.prod(grid), "tokens of another grid"
    return grid


def arguments_of(head: nn.Module) -> str:
    """The arguments of a head that stores them under their names, for `extra_repr`."""
    names = inspect.signature(type(head)).parameters
    return ", ".join(f"{name}={getattr(head, name)!r}" for name in names)
