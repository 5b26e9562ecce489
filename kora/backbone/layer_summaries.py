"""Summaries of the tokens of several layers, which a classifier may read with the pooled vector.

Shapes: B images, P prefix tokens, N patch tokens, K prompts, D width, E channels of all summaries.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.backbone.sites import find_sites, require_blocks
from kora.backbone.vit import Backbone

__all__ = ["Layer", "LayerSummaries"]

Layer = Literal["proj", "block"]


class LayerSummaries(nn.Module):
    """CLS tokens and means over the patch tokens of several blocks, normalised and concatenated.

    They come from the one forward pass that is run anyway, whatever the number of blocks. Nothing
    here trains.
    Source: Evci et al. 2022 (Head2Toe, arXiv:2201.03529): a linear classifier of all layers;
    Oquab et al. 2023 (DINOv2, arXiv:2304.07193), appendix B.3: CLS of the last four blocks and the
    mean over the patches of the last.

    Args:
        layer: `proj`: the input of each block's attention output; summaries are normalised by
            LayerNorm without parameters. `block`: the output of each block; tokens are normalised
            by the backbone's last norm, as in DINOv2's evaluation.
        cls_blocks: Blocks whose CLS token is read; negative numbers count from the end.
        mean_blocks: Blocks whose mean over the patch tokens is read.

    Raises:
        ValueError: For an unknown layer, no block at all, one outside the depth, or the CLS token
            of a backbone that has none.
    """

    def __init__(
        self,
        layer: Layer = "proj",
        *,
        cls_blocks: Sequence[int] = (),
        mean_blocks: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if layer not in get_args(Layer):
            raise ValueError(
                f"LayerSummaries: layer='{layer}', expected one of {', '.join(get_args(Layer))}."
            )
        if not cls_blocks and not mean_blocks:
            raise ValueError(
                "LayerSummaries: cls_blocks and mean_blocks are empty, so nothing would be read. "
                "Name blocks, such as [-6, -5, -4, -3, -2, -1], or use LinearProbe."
            )
        self.layer: Layer = layer
        self.cls_blocks = cls_blocks
        self.mean_blocks = mean_blocks
        self.width = 0
        self.needs_last_tokens = True
        self._order: list[tuple[int, str]] = []
        self._awaited: set[int] = set()
        self._kept: dict[tuple[int, str], Tensor] = {}

    def install(self, backbone: Backbone) -> None:
        """Let every pass of the backbone return `Features.layers`; call after `attach`."""
        if self.cls_blocks and not backbone.has_cls:
            raise ValueError(
                f"LayerSummaries: cls_blocks={list(self.cls_blocks)} reads the CLS token, and "
                f"{backbone.name} has none. Use mean_blocks."
            )
        wanted = {"cls": self.cls_blocks, "mean": self.mean_blocks}
        self._order = [
            (number, kind)
            for kind, blocks in wanted.items()
            if blocks
            for number in require_blocks(backbone, blocks)
        ]
        self.width = len(self._order) * backbone.width
        self.needs_last_tokens = (backbone.depth - 1, "mean") in self._order
        read = sorted({number for number, _ in self._order})
        if self.layer == "proj":
            for site in find_sites(backbone, ["proj"], blocks=read):
                if site.d_in != backbone.width:
                    raise ValueError(
                        f"LayerSummaries: proj of {backbone.name} reads {site.d_in} channels and "
                        f"its tokens have {backbone.width}. Use layer='block'."
                    )
                assert site.block is not None
                module = backbone.model.get_submodule(site.path)
                module.register_forward_pre_hook(partial(self._input, backbone, site.block))
        else:
            for number in read:
                block = backbone.model.blocks[number]
                block.register_forward_hook(partial(self._output, backbone, number))
        backbone.layer_summaries = self

    @property
    def first_block(self) -> int:
        """The first block that it reads; asked after `install`."""
        return min(number for number, _ in self._order)

    def begin(self) -> None:
        """Keep the summaries of the next pass, but not those that backward recomputes."""
        self._awaited = {number for number, _ in self._order}
        self._kept = {}

    def keep(self, backbone: Backbone, number: int, tokens: Tensor) -> None:
        """Called by a block with its tokens (B, P + N + K, D)."""
        # A recomputation in backward must compute the same, though its result is not kept.
        found: dict[tuple[int, str], Tensor] = {}
        if (number, "cls") in self._order:
            found[number, "cls"] = self._normed(backbone, tokens[:, :1])[:, 0]
        if (number, "mean") in self._order:
            patches = backbone.patches_of(tokens)
            if self.layer == "proj":  # the mean first, as the summary is normalised
                patches = patches.mean(dim=1, keepdim=True)
            found[number, "mean"] = self._normed(backbone, patches).mean(dim=1)
        if number in self._awaited:
            self._awaited.remove(number)
            self._kept |= found

    def taken(self) -> Tensor:
        """Summaries (B, E) of the last pass: CLS tokens block by block, then means."""
        assert not self._awaited, "a block was not reached"
        kept, self._kept = self._kept, {}
        return torch.cat([kept[place] for place in self._order], dim=1)

    def extra_repr(self) -> str:
        cls_blocks, mean_blocks = list(self.cls_blocks), list(self.mean_blocks)
        return f"{self.layer}, cls_blocks={cls_blocks}, mean_blocks={mean_blocks}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}, "_awaited": set()}  # a copy has seen no batch

    # Hooks are partials of methods, as modules with closures cannot be copied.

    def _input(self, backbone: Backbone, number: int, layer: nn.Module, inputs: Any) -> None:
        self.keep(backbone, number, inputs[0])

    def _output(
        self, backbone: Backbone, number: int, block: nn.Module, inputs: Any, output: Tensor
    ) -> None:
        self.keep(backbone, number, output)

    def _normed(self, backbone: Backbone, tokens: Tensor) -> Tensor:
        if self.layer == "proj":
            return F.layer_norm(tokens, tokens.shape[-1:])
        normed: Tensor = backbone.model.norm(tokens)
        return normed


class Together(nn.Module):
    """Takes the place of the summaries of one head; every pass collects those of several."""

    def __init__(self, summaries: Sequence[LayerSummaries]) -> None:
        super().__init__()
        self.summaries: Any = nn.ModuleList(summaries)
        self.last: list[Tensor] = []

    def begin(self) -> None:
        """Keep the summaries of the next pass."""
        for one in self.summaries:
            one.begin()

    def taken(self) -> None:
        """After the pass: keep the summaries of each head in `last`."""
        self.last = [one.taken() for one in self.summaries]
