"""The contract of a strategy: what it adds to a frozen backbone, and which tensors train.

A new strategy is one file in this folder with one subclass of `Strategy`; no other file changes.
Constructor arguments are stored under their own names (`describe` reads them back), and the
tensors that train are the strategy's own parameters.

Shapes: B images.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from kora.adapters.arguments import arguments_of
from kora.adapters.frozen_pass import FrozenPass
from kora.backbone.layer_summaries import LayerSummaries
from kora.backbone.vit import Backbone, Features

__all__ = [
    "EarlierRuns",
    "ExtraChannels",
    "ExtraInit",
    "Strategy",
    "first_block",
    "place_of",
    "resized",
]

ExtraInit = Literal["zero", "orthogonal"]


class ExtraChannels(NamedTuple):
    """Channels that a strategy appends to the pooled vector.

    Attributes:
        width: Number of channels.
        init: Start of the head's columns for them: `zero`, or `orthogonal` rows.
    """

    width: int
    init: ExtraInit = "zero"


class EarlierRuns(Protocol):
    """The part of a strategy that consists of adapters of earlier runs.

    Before `attach`, it is given their folders, or their copies in a saved file of the strategy.
    Afterwards, `origins` describes them.
    """

    #: The constructor argument with their paths, which may differ: their contents are compared.
    argument: str

    def configs(self) -> list[str]:
        """The configs among them: `kora fit` runs these if needed."""

    def locate(self, folders: Mapping[str, str]) -> None:
        """Before `attach`: set the adapter folders (values) that these configs (keys) produced."""

    def missing(self) -> list[str]:
        """Folders that `attach` needs and cannot read."""

    def recall(
        self,
        record: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        origin: str,
        *,
        alone: bool = False,
    ) -> None:
        """Before `attach`: take what is missing from a saved file of this strategy.

        Args:
            record: The file's class path, arguments and `origins`.
            tensors: The file's tensors, named as in `Strategy.tensors`.
            origin: Name of the file in messages.
            alone: Take all from the file, also what is not missing.
        """

    def take_over(self, other: Any) -> None:
        """Before `attach`: take over what another such part has recalled and located."""

    def origins(self) -> dict[str, Any]:
        """Description of them for a saved file, in plain types; `recall` reads it back."""

    def verify(self, stored: Mapping[str, Tensor], origin: str) -> None:
        """Check the tensors of a file before they are loaded.

        Raises:
            ValueError: If the file was trained on other adapters.
        """


class Strategy(nn.Module, ABC):
    """One way to adapt a frozen backbone.

    Life cycle: the constructor only stores its arguments; `attach` is called once with the backbone
    and creates the parameters; `forward` is called for every batch.
    """

    #: Whether a gradient must pass through the backbone. If not, the backbone runs without autograd
    #: and keeps nothing for backward.
    needs_backbone_grad: bool = True

    #: Whether any part of it combines tokens after the attention of the last block, as a mean over
    #: tokens does. If not, and the head reads only CLS, the other tokens are not computed there
    #: (kora/backbone/last_block.py).
    needs_last_tokens: bool = True

    #: Channels that it appends to the pooled vector, for the head to read.
    extra_channels: ExtraChannels | None = None

    #: Width of the vector that it sends to the queries of a decoder (`Features.query`).
    query_channels: int | None = None

    #: Whether there is anything to carry over from a source stage.
    carries_over: bool = True

    #: Number of classes of the head; set before `attach` if the task has classes.
    num_outputs: int | None = None

    #: Adapters of earlier runs that it builds on, as a fusion does; None if it uses none.
    earlier_runs: EarlierRuns | None = None

    #: The constructor argument (a whole number) that sets its size, such as a rank or a width; with
    #: a dot for an argument of a part: `node_form.rank`. `kora params --match` searches for its
    #: value. None if there is no such argument.
    size_argument: str | None = None

    @property
    def label(self) -> str:
        """Name in folders and tables; differs if a setting makes it another method."""
        return type(self).__name__

    @property
    def head_layers(self) -> LayerSummaries | None:
        """Summaries of earlier layers that a classifier's head reads with the pooled vector."""
        return None

    @property
    def without_effect(self) -> str:
        """Advice on trainables that do not influence the loss; completes a warning."""
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
        """`forward` in two halves, for a strategy that never changes what the backbone computes.

        Raises:
            ValueError: If it changes what the backbone computes, as most strategies do.
        """
        raise ValueError(
            f"{self.label} changes what the backbone computes, so its features change with training"
        )

    def untouched_blocks(self) -> int:
        """How many blocks, from the first, it neither changes nor reads; asked after `attach`.

        A fit may keep what enters the next block (kora/feature_cache). 0 is always right.
        """
        return 0

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What trains, by name: freezing, optimiser, counts, files and reports all use it."""
        yield from self.named_parameters()

    def tensors(self) -> dict[str, Tensor]:
        """What a saved adapter must hold: the trainables and the fixed random buffers."""
        return dict(self.trainable()) | dict(self.named_buffers())

    def merged(self, backbone: Backbone) -> dict[str, Tensor]:
        """The backbone's weights with the adapter folded in, for timm's model without KoRA.

        Raises:
            ValueError: If weights of the backbone cannot express what this strategy computes.
        """
        raise ValueError(
            f"{self.label} cannot be folded into the weights of {backbone.name}, which cannot "
            "express what it computes. Keep the adapter folder, or use LoRA, DoRA, SSF or BitFit."
        )

    def penalty(self) -> Tensor | None:
        """A regulariser, a scalar that tasks add to the training loss; None for none."""
        return None

    def extra_repr(self) -> str:
        return ", ".join(
            f"{k}={v!r}" for k, v in arguments_of(self).items() if not isinstance(v, nn.Module)
        )


def resized(strategy: Strategy, size: int) -> Strategy:
    """Copy a strategy that is not attached yet, with another value of its `size_argument`."""
    assert strategy.size_argument is not None, "it has no size"
    made = _with(strategy, strategy.size_argument, size)
    assert isinstance(made, Strategy)
    made.num_outputs = strategy.num_outputs
    if made.earlier_runs is not None:
        made.earlier_runs.take_over(strategy.earlier_runs)
    return made


def _with(obj: nn.Module, argument: str, value: int) -> nn.Module:
    """A copy with another value of an argument, or of a part's argument: `node_form.rank`."""
    name, _, inner = argument.partition(".")
    arguments = copy.deepcopy(arguments_of(obj))
    arguments[name] = _with(arguments[name], inner, value) if inner else value
    made: nn.Module = type(obj)(**arguments)
    return made


def first_block(names: Iterable[str]) -> int:
    """The first block that names of trainables, or keys of sites, contain; 0 if there is none."""
    blocks = [place_of(name)[0] for name in names]
    return min((int(block) for block in blocks if block.isdigit()), default=0)


def place_of(name: str) -> tuple[str, str]:
    """Row and column of a trainable in tables, (block, site); the row is – outside the blocks.

    Names are timm's (`blocks.3.attn.qkv.bias` to (3, qkv)), or contain the key of an insertion
    point (`deltas.b03_qkv.down_RI`).
    """
    parts = name.split(".")
    if parts[0] == "blocks":
        return parts[1], parts[3] if len(parts) > 4 else parts[2]
    for part in parts:
        if part[:1] == "b" and part[1:3].isdigit() and part[3:4] == "_":
            return str(int(part[1:3])), part[4:]
    return "–", parts[1] if parts[0] == "outer_affines" else parts[0]
