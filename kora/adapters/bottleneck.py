"""Bottleneck adapters: a small MLP on the tokens of every block.

Shapes: B images, N tokens, D width, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.adapters.arguments import (
    require_choice,
    require_effect,
    require_positive,
    require_probability,
)
from kora.adapters.base import Strategy
from kora.backbone.insertion_points import Position, add_at_place, find_places
from kora.backbone.vit import Backbone

__all__ = ["Bottleneck", "BottleneckMLP"]

Activation = Literal["relu", "gelu"]
Scale = Literal["none", "layer", "channel"]
Init = Literal["houlsby", "bert", "lora"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


class BottleneckMLP(nn.Module):
    """alpha * s * DropPath(W_up act(W_down x + b_down) + b_up), without a skip of its own."""

    def __init__(
        self,
        width: int,
        rank: int,
        *,
        activation: Activation,
        scale: Scale,
        alpha: float,
        dropout: float,
        drop_path: float,
        init: Init,
    ) -> None:
        super().__init__()
        if rank > width:
            raise ValueError(
                f"Bottleneck: rank={rank} is wider than the tokens ({width}), so it is no "
                f"bottleneck; expected 1 to {width}."
            )
        self.down = nn.Linear(width, rank)
        self.up = nn.Linear(rank, width)
        if scale != "none":
            self.scale = nn.Parameter(torch.ones(1 if scale == "layer" else width))
        self.scaled = scale != "none"
        self.activation = activation
        self.alpha = alpha
        self.dropout = dropout
        self.drop_path = drop_path
        _start(self.down, self.up, init)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        low_BNR = _ACTIVATIONS[self.activation](self.down(x))
        if self.dropout:
            low_BNR = F.dropout(low_BNR, self.dropout, self.training)
        delta: Tensor = self.up(low_BNR)
        factor = self.alpha * self.scale if self.scaled else self.alpha
        delta = delta * factor
        if self.drop_path and self.training:
            kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.drop_path
            delta = delta * (kept / (1 - self.drop_path)).to(delta.dtype)
        return delta

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """What to add to the output y, for the adapter's input x."""
        delta: Tensor = self(x)
        return delta


class Bottleneck(Strategy):
    """y + alpha * s * DropPath(W_up act(W_down x + b_down) + b_up) in every block.

    x is the adapter's input and y the output to which it adds. Positions, with y_attn and y_mlp the
    outputs of the two branches (after LayerScale, norm of post-norm blocks and drop-path):

    * `houlsby`: x = y = y_attn, and a second adapter with x = y = y_mlp, inside the residual
      (Houlsby et al. 2019, arXiv:1902.00751).
    * `pfeiffer`: only the second of these (Pfeiffer et al. 2021, arXiv:2005.00247; Steitz and Roth
      call it `intermediate`). AdapterHub's form for ViT reads y_mlp plus the stream; without its
      layer norm, it equals `post`.
    * `parallel`: x is the stream that enters the MLP branch, before its norm, and y = y_mlp
      (AdaptFormer, arXiv:2205.13535, and its code).
    * `post`: x = y is the output of the block. With `scale: channel`, GELU and Houlsby's start
      this is Adapter+ (Steitz and Roth, CVPR 2024, arXiv:2406.06820).

    Only `init: lora` starts as exactly the frozen backbone. The published starts `houlsby` and
    `bert` are small and random: near the backbone, not equal to it.

    Args:
        rank: Inner width R.
        position: Insertion point, see above.
        activation: `relu` or `gelu`.
        scale: s: `none`, one learned number for a `layer`, or one for a `channel`; starts at 1.
        alpha: Fixed factor (AdaptFormer's s is alpha 0.1 with `scale: none`).
        dropout: Probability with which inputs of W_up are dropped in training.
        drop_path: Probability with which the adapter is left out for an image in training.
        init: `houlsby` draws both matrices from a normal distribution of sigma 0.01, truncated at
            two sigma; `bert` of sigma 0.02; `lora` draws W_down as LoRA does and sets W_up to zero.
            All biases are zero.
        blocks: Numbers of the adapted blocks; None means all.

    Raises:
        ValueError: For a rank below 1 or above D, an alpha of 0, a probability outside [0, 1), an
            unknown choice, or a block without this insertion point.
    """

    size_argument = "rank"
    needs_last_tokens = False

    @property
    def label(self) -> str:
        """`Bottleneck`, with its position if that is not `pfeiffer`; or `Adapter+`."""
        if (self.position, self.scale, self.activation) == ("post", "channel", "gelu"):
            return "Adapter+"
        return "Bottleneck" if self.position == "pfeiffer" else f"Bottleneck-{self.position}"

    def __init__(
        self,
        rank: int = 8,
        position: Position = "pfeiffer",
        *,
        activation: Activation = "relu",
        scale: Scale = "none",
        alpha: float = 1.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        init: Init = "houlsby",
        blocks: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        require_positive("Bottleneck", rank=rank)
        require_effect("Bottleneck", alpha)
        require_choice("Bottleneck", "position", position, get_args(Position))
        require_choice("Bottleneck", "activation", activation, get_args(Activation))
        require_choice("Bottleneck", "scale", scale, get_args(Scale))
        require_choice("Bottleneck", "init", init, get_args(Init))
        require_probability("Bottleneck", dropout=dropout, drop_path=drop_path)
        self.rank = rank
        self.position: Position = position
        self.activation: Activation = activation
        self.scale: Scale = scale
        self.alpha = alpha
        self.dropout = dropout
        self.drop_path = drop_path
        self.init: Init = init
        self.blocks = blocks
        self.adapters = nn.ModuleDict()

    def attach(self, backbone: Backbone) -> None:
        """Hook the adapters in."""
        assert not self.adapters, "attached twice"
        for place in find_places(backbone, self.position, blocks=self.blocks):
            adapter = self.make(backbone.width)
            self.adapters[place.key] = adapter
            add_at_place(backbone, place, adapter.add)

    def make(self, width: int) -> BottleneckMLP:
        """One adapter with these settings for tokens of D channels, not yet hooked in."""
        return BottleneckMLP(
            width,
            self.rank,
            activation=self.activation,
            scale=self.scale,
            alpha=self.alpha,
            dropout=self.dropout,
            drop_path=self.drop_path,
            init=self.init,
        )


def _start(down: nn.Linear, up: nn.Linear, init: Init) -> None:
    nn.init.zeros_(down.bias)
    nn.init.zeros_(up.bias)
    if init == "lora":
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))  # as in Hu et al.'s code
        nn.init.zeros_(up.weight)
        return
    for layer in (down, up):
        if init == "bert":
            nn.init.normal_(layer.weight, std=0.02)
        else:
            nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.02, b=0.02)
