"""The contract of a strategy: what it adds to a frozen backbone, and what of it trains.

A new strategy is one file in this folder with one subclass of `Strategy`; nothing else is edited.
Constructor arguments are stored under their own names (`describe` reads them back), and the
tensors that train are the strategy's own parameters.

Shapes: B images.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from kora.adapters.arguments import arguments_of
from kora.adapters.frozen_pass import FrozenPass
from kora.backbone.layer_summaries import LayerSummaries
from kora.backbone.vit import Backbone, Features

__all__ = ["EarlierRuns", "ExtraChannels", "ExtraInit", "Strategy", "place_of", "resized"]

ExtraInit = Literal["zero", "orthogonal"]


class ExtraChannels(NamedTuple):
    """Channels beside those of the pooled vector.

    Attributes:
        width: How many.
        init: How the head's columns for them start: at `zero`, or with `orthogonal` rows.
    """

    width: int
    init: ExtraInit = "zero"


class EarlierRuns(Protocol):
    """The part of a strategy that is made of adapters of earlier runs.

    Before `attach` it is led to their folders, or given what a file of such a strategy holds of
    them; afterwards it says what they were.
    """

    #: The constructor argument that says where they lie; what is in them is compared instead.
    argument: str

    def configs(self) -> list[str]:
        """Configs among them: `kora fit` runs those where needed."""

    def locate(self, folders: Mapping[str, str]) -> None:
        """Before `attach`: the adapter folders (values) that these configs (keys) led to."""

    def missing(self) -> list[str]:
        """Folders that `attach` would read, and cannot."""

    def recall(self, record: Mapping[str, Any], tensors: Mapping[str, Tensor], origin: str) -> None:
        """Before `attach`: take what is missing from a file of this strategy.

        Args:
            record: Of a file: class path, arguments and `origins`.
            tensors: Names as in `Strategy.tensors`.
            origin: What to call the file in messages.
        """

    def take_over(self, other: Any) -> None:
        """Before `attach`: what the same part of another such strategy has recalled and located."""

    def origins(self) -> dict[str, Any]:
        """What a file says of them, in plain types, so that it can stand in for them."""

    def verify(self, stored: Mapping[str, Tensor], origin: str) -> None:
        """Look at the tensors of a file before they are loaded.

        Raises:
            ValueError: If the strategy was trained on others.
        """


class Strategy(nn.Module, ABC):
    """One way to adapt a frozen backbone.

    Life of an object: the constructor only keeps its arguments; `attach` is called once with the
    backbone and creates the parameters; `forward` is called for every batch.
    """

    #: Whether a gradient must pass through the backbone. Where it need not, the backbone runs
    #: without autograd and keeps nothing for backward.
    needs_backbone_grad: bool = True

    #: Whether something of it reads, behind the attention of the last block, other tokens than its
    #: own: a mean over tokens does. Where nothing does and the head reads CLS alone, the other
    #: tokens are not computed there (kora/backbone/last_block.py).
    needs_last_tokens: bool = True

    #: What it puts beside the channels of the pooled vector, for the head to read.
    extra_channels: ExtraChannels | None = None

    #: Whether there is anything to carry over from a source stage.
    carries_over: bool = True

    #: Classes that the head tells apart; known before `attach` where the task has classes.
    num_outputs: int | None = None

    #: What it takes from adapters of earlier runs, as a fusion does; None where it takes nothing.
    earlier_runs: EarlierRuns | None = None

    #: The constructor argument, a whole number, that makes it larger or smaller: a rank, a width;
    #: of a part of it with a dot, `node_form.rank`.
    #: `kora params --match` looks for its value. None where there is no such argument.
    size_argument: str | None = None

    @property
    def label(self) -> str:
        """Name in folders and tables; differs where a setting makes it another method."""
        return type(self).__name__

    @property
    def head_layers(self) -> LayerSummaries | None:
        """What of earlier layers a classifier's head is to read beside the pooled vector."""
        return None

    @property
    def without_effect(self) -> str:
        """What to do about trainables that do not influence the loss; completes a warning."""
        return "Leave them out (sites, blocks), or use a head that reads what they change."

    @abstractmethod
    def attach(self, backbone: Backbone) -> None:
        """Create the parameters for this backbone and hook them in.

        Raises:
            ValueError: If a setting does not fit the backbone.
        """

    def forward(self, backbone: Backbone, images: Tensor) -> Features:
        """Adapted features of (B, 3, H, W) images."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.needs_backbone_grad):
            features: Features = backbone(images)
        return features

    def frozen_pass(self) -> FrozenPass:
        """Of a strategy that never changes what the backbone computes: `forward` in two halves.

        Raises:
            ValueError: It changes what the backbone computes, as most strategies do.
        """
        raise ValueError(
            f"{self.label} changes what the backbone computes, so nothing of a pass stays the same"
        )

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The one truth for what trains: freezing, optimiser, counts, files and reports use it."""
        yield from self.named_parameters()

    def tensors(self) -> dict[str, Tensor]:
        """What a file of this adapter must hold: the trainables and the fixed random buffers."""
        return dict(self.trainable()) | dict(self.named_buffers())

    def merged(self, backbone: Backbone) -> dict[str, Tensor]:
        """The backbone's weights with the adapter folded in, for timm's model without KoRA.

        Raises:
            ValueError: If this strategy computes what no weights of the backbone can.
        """
        raise ValueError(
            f"{self.label} cannot be folded into the weights of {backbone.name}: it computes what "
            "they cannot. Keep the adapter folder, or use LoRA, DoRA, SSF or BitFit."
        )

    def penalty(self) -> Tensor | None:
        """A regulariser, a scalar that tasks add to the training loss; None for none."""
        return None

    def extra_repr(self) -> str:
        return ", ".join(
            f"{k}={v!r}" for k, v in arguments_of(self).items() if not isinstance(v, nn.Module)
        )


def resized(strategy: Strategy, size: int) -> Strategy:
    """A strategy like one that is not attached yet, with another value of its `size_argument`."""
    assert strategy.size_argument is not None, "it has no size"
    made = _with(strategy, strategy.size_argument, size)
    assert isinstance(made, Strategy)
    if made.earlier_runs is not None:
        made.earlier_runs.take_over(strategy.earlier_runs)
    return made


def _with(obj: nn.Module, argument: str, value: int) -> nn.Module:
    """One like it with another value of an argument, or of a part's argument: `node_form.rank`."""
    name, _, inner = argument.partition(".")
    arguments = copy.deepcopy(arguments_of(obj))
    arguments[name] = _with(arguments[name], inner, value) if inner else value
    made: nn.Module = type(obj)(**arguments)
    return made


def place_of(name: str) -> tuple[str, str]:
    """Row and column of a trainable in tables, (block, site); the row is – outside of the blocks.

    Names are those of timm (`blocks.3.attn.qkv.bias` to (3, qkv)), or have the key of a place
    (`deltas.b03_qkv.down_RI`).
    """
    parts = name.split(".")
    if parts[0] == "blocks":
        return parts[1], parts[3] if len(parts) > 4 else parts[2]
    for part in parts:
        if part[:1] == "b" and part[1:3].isdigit() and part[3:4] == "_":
            return str(int(part[1:3])), part[4:]
    return "–", parts[1] if parts[0] == "outer_affines" else parts[0]
