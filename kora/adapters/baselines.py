"""The two extremes: no weight of the backbone trains, or all of them do."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from kora.adapters.base import Strategy
from kora.adapters.frozen_pass import FrozenPass
from kora.backbone.rewrites import plain_state
from kora.backbone.vit import Backbone

__all__ = ["FullFineTune", "LinearProbe"]


class LinearProbe(Strategy):
    """No adapter: only the head trains, on the frozen features."""

    needs_backbone_grad = False
    needs_last_tokens = False
    carries_over = False

    def attach(self, backbone: Backbone) -> None:
        """Nothing to create."""

    def frozen_pass(self) -> FrozenPass:
        """The features are those of the frozen backbone."""
        return FrozenPass()

    def merged(self, backbone: Backbone) -> dict[str, Tensor]:
        """The frozen weights, as they are."""
        return plain_state(backbone)


class FullFineTune(Strategy):
    """Every weight of the backbone trains, and its dropout and drop-path run in training."""

    needs_last_tokens = False

    def __init__(self) -> None:
        super().__init__()
        self._backbone: tuple[Backbone, ...] = ()  # a tuple is not registered as a submodule

    def attach(self, backbone: Backbone) -> None:
        """Thaw the backbone."""
        _ = backbone.sha256  # hash the weights before training
        backbone.frozen = False
        self._backbone = (backbone,)

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The backbone's parameters, by timm's names."""
        for backbone in self._backbone:
            yield from backbone.model.named_parameters()

    def tensors(self) -> dict[str, Tensor]:
        """The whole backbone; nothing before `attach`."""
        return {
            name: tensor
            for backbone in self._backbone
            for name, tensor in backbone.model.state_dict(keep_vars=True).items()
        }

    def merged(self, backbone: Backbone) -> dict[str, Tensor]:
        """The trained weights."""
        return plain_state(backbone)
