"""One vector per image from every layer of a model, for comparing representations.

Shapes: B images, N patch tokens, P prefix tokens (CLS, registers), K prompts, D width
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kora.backbone.vit import Backbone, Features

__all__ = ["Kind", "LayerReader", "layer_names"]

Kind = Literal["cls", "mean"]
Vectors = list[NDArray[np.float64]]


def layer_names(backbone: Backbone) -> list[str]:
    """`embedding`, `block 0` to the last, and `final`: what a `LayerReader` returns, in order."""
    return ["embedding", *(f"block {i}" for i in range(backbone.depth)), "final"]


class LayerReader:
    """Reads the layers while a model runs.

    The embedding is the input of the first block, before prompts are added. A block is its output,
    with what an adapter adds after it, before the norm at the end of the backbone. `final` is what
    the head reads: the pooled feature, or the last level if the backbone returns levels (for a
    depth head).

    Args:
        backbone: With the adapter hooked in, or frozen.
        kind: The CLS token of a layer, or the mean over its patch tokens: without CLS, registers
            and prompts.
        forward: Images to features, through `backbone`; None is the backbone itself.

    Raises:
        ValueError: For `cls` on a backbone without a CLS token.
    """

    def __init__(
        self, backbone: Backbone, kind: Kind, forward: Callable[[Tensor], Features] | None = None
    ) -> None:
        if kind == "cls" and not backbone.has_cls:
            raise ValueError(
                f"--features cls reads the CLS token, and {backbone.name} has none. Use --features "
                "mean (the mean over the patch tokens)."
            )
        self.backbone = backbone
        self.kind: Kind = kind
        self.forward = backbone if forward is None else forward

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Vectors:
        """A vector (B, D) in float64 for each of `layer_names`, for (B, 3, H, W) images."""
        kept: list[Tensor] = []

        def enters(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            kept.append(self._of_tokens(inputs[0]))

        def leaves(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            kept.append(self._of_tokens(output))

        blocks = self.backbone.model.blocks
        with ExitStack() as hooks:
            # This hook is first, before prompts are added; the others last, after every adapter.
            hooks.enter_context(blocks[0].register_forward_pre_hook(enters, prepend=True))
            for block in blocks:
                hooks.enter_context(block.register_forward_hook(leaves))
            features = self.forward(images.to(self.backbone.mean.device))
        kept.append(self._final(features))
        assert len(kept) == len(blocks) + 2
        return [vector.float().cpu().numpy().astype(np.float64) for vector in kept]

    def _of_tokens(self, tokens: Tensor) -> Tensor:
        """(B, P + N, D), or (B, P + N + K, D), to (B, D)."""
        if self.kind == "cls":
            return tokens[:, 0].clone()  # a view would keep all tokens
        return self.backbone.patches_of(tokens).mean(dim=1)

    def _final(self, features: Features) -> Tensor:
        if not features.levels:
            return features.pooled
        level = features.levels[-1]
        return level.prefix[:, 0] if self.kind == "cls" else level.patches.mean(dim=1)
