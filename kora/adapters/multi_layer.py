"""MultiLayerProbe: a linear classifier of several frozen layers."""

from __future__ import annotations

from collections.abc import Sequence

from kora.adapters.base import Strategy
from kora.adapters.frozen_pass import FrozenPass
from kora.backbone.layer_summaries import Layer, LayerSummaries
from kora.backbone.vit import Backbone

__all__ = ["MultiLayerProbe"]


class MultiLayerProbe(Strategy):
    """No adapter: the head reads the pooled vector and summaries of several frozen layers.

    It is the control for every adapter that reads several layers: the head reads as much of them,
    with nothing in between. For depth, `LinearDepth` reads four levels already.
    Source: Evci et al. 2022 (Head2Toe, arXiv:2201.03529); with `layer: block`, CLS of the last
    blocks and the mean of the last, the linear evaluation of Oquab et al. 2023 (DINOv2,
    arXiv:2304.07193), appendix B.3.

    Args:
        layer: See `LayerSummaries`.
        cls_blocks: Blocks whose CLS token is read, the last six by default.
        mean_blocks: Blocks whose mean over the patch tokens is read, the last six by default.

    Raises:
        ValueError: As `LayerSummaries`.
    """

    needs_backbone_grad = False
    needs_last_tokens = False  # LayerSummaries has its own flag
    carries_over = False

    def __init__(
        self,
        layer: Layer = "proj",
        *,
        cls_blocks: Sequence[int] = (-6, -5, -4, -3, -2, -1),
        mean_blocks: Sequence[int] = (-6, -5, -4, -3, -2, -1),
    ) -> None:
        super().__init__()
        self.layer: Layer = layer
        self.cls_blocks = cls_blocks
        self.mean_blocks = mean_blocks
        self.summaries = LayerSummaries(layer, cls_blocks=cls_blocks, mean_blocks=mean_blocks)

    @property
    def label(self) -> str:
        """`MultiLayerProbe`, or `MultiLayerProbe-block` if outputs of blocks are read."""
        return "MultiLayerProbe" + "-block" * (self.layer == "block")

    @property
    def head_layers(self) -> LayerSummaries:
        """The summaries that the head reads."""
        return self.summaries

    def attach(self, backbone: Backbone) -> None:
        """Nothing to create: the layers are read for the head."""
        self.summaries.install(backbone)

    def frozen_pass(self) -> FrozenPass:
        """The features are those of the frozen backbone."""
        return FrozenPass()
