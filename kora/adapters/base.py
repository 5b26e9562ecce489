"""The contract of a strategy: what it adds to a frozen backbone, and what of it trains.

A new strategy is one file in this folder with one subclass of `Strategy`; nothing else is edited.
Constructor arguments are stored under their own names (`describe` reads them back), and the
tensors that train are the strategy's own parameters.

Shapes: B images, N tokens, I input width, O output width, R rank, D backbone width.
"""

from __future__ import annotations

import copy
import inspect
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.backbone.frozen_inputs import Inputs, features_from, named_features
from kora.backbone.kernels import Update
from kora.backbone.layer_summaries import LayerSummaries
from kora.backbone.sites import Site
from kora.backbone.vit import Backbone, Features

__all__ = [
    "LowRankDelta",
    "Strategy",
    "describe",
    "require_choice",
    "require_effect",
    "require_positive",
    "require_probability",
    "resized",
]

ExtraInit = Literal["zero", "orthogonal"]


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

    #: Channels that it puts beside those of the pooled vector, for the head to read.
    extra_width: int = 0

    #: How the head's columns for these channels start: at `zero`, or with `orthogonal` rows.
    extra_init: ExtraInit = "zero"

    #: Arguments that only say where files lie; what is in them is compared by `verify` instead.
    locations: frozenset[str] = frozenset()

    #: Whether there is anything to carry over from a source stage.
    carries_over: bool = True

    #: The constructor argument, a whole number, that makes it larger or smaller: a rank, a width.
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
    def starts_as_backbone(self) -> bool:
        """Whether the adapted features equal the frozen ones before the first step."""
        return True

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
        return self.from_frozen(self.frozen_inputs(backbone, images))

    def frozen_inputs(self, backbone: Backbone, images: Tensor) -> dict[str, Tensor]:
        """All that `from_frozen` reads of a pass, (B, ...) each: the features, by their names."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.needs_backbone_grad):
            return named_features(backbone(images))

    def from_frozen(self, inputs: Inputs) -> Features:
        """Adapted features; where `frozen_key` allows it, of inputs that were kept from before."""
        return features_from(inputs)

    def frozen_key(self) -> dict[str, Any]:
        """What `frozen_inputs` depends on beside backbone and images, in plain types.

        A strategy that says so never changes what the backbone computes: its inputs are the same
        in every epoch, and a run may keep them (kora/feature_cache/cache.py). It then leaves
        `forward` as it is.

        Raises:
            ValueError: Its inputs change while it trains, as those of most strategies do.
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

    def verify(self, stored: Mapping[str, Tensor], origin: str) -> None:
        """Look at the tensors of a file (names as in `tensors`) before they are loaded.

        Raises:
            ValueError: If they do not belong to what this strategy was built from.
        """

    def missing(self) -> list[str]:
        """Folders of earlier runs that `attach` would read, and cannot."""
        return []

    def origins(self) -> dict[str, Any]:
        """What a file says of earlier runs, in plain types, so that it can stand in for them."""
        return {}

    def source_configs(self) -> list[str]:
        """Configs of earlier runs whose adapters it takes: `kora fit` runs them where needed."""
        return []

    def locate(self, folders: Mapping[str, str]) -> None:
        """Before `attach`: the adapter folders (values) that these configs (keys) led to."""

    def take_over(self, other: Strategy) -> None:
        """Before `attach`: what another one of this class has recalled and located."""

    def recall(self, record: Mapping[str, Any], tensors: Mapping[str, Tensor], origin: str) -> None:
        """Before `attach`: take what is missing from a file of this strategy.

        Args:
            record: Of a file: class path, arguments and `origins`.
            tensors: Names as in `tensors`.
            origin: What to call the file in messages.
        """

    def penalty(self) -> Tensor | None:
        """A regulariser, a scalar that tasks add to the training loss; None for none."""
        return None

    def site_of(self, name: str) -> tuple[str, str]:
        """Row and column of a trainable in the parameter table: (block, site)."""
        for part in name.split("."):
            if part[:1] == "b" and part[1:3].isdigit() and part[3:4] == "_":
                return str(int(part[1:3])), part[4:]
        return "–", name.split(".")[0]

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v!r}" for k, v in _arguments(self).items() if _is_plain(v))


class LowRankDelta(nn.Module):
    """Trainable low-rank correction, alpha * B(A x), for one site.

    Starts at exactly zero (B is zero), so step 0 equals the frozen backbone. `alpha` multiplies
    directly, as in the KoRA paper; peft's `lora_alpha` is alpha * rank.
    Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
    """

    def __init__(self, site: Site, rank: int, *, alpha: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__()
        limit = min(site.d_in, site.d_out)
        if rank > limit:
            raise ValueError(
                f"rank={rank} at site '{site.name}' ({site.d_in} to {site.d_out}) is larger than "
                f"the layer itself; expected 1 to {limit}."
            )
        self.alpha = alpha
        self.dropout = dropout
        self.down_RI = nn.Parameter(torch.empty(rank, site.d_in))
        self.up_OR = nn.Parameter(torch.zeros(site.d_out, rank))
        nn.init.kaiming_uniform_(self.down_RI, a=math.sqrt(5))  # as in Hu et al.'s code

    def low(self, x: Tensor) -> Tensor:
        """A x: (..., I) to (..., R)."""
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        return F.linear(x, self.down_RI)

    def up(self, low: Tensor) -> Tensor:
        """B low: (..., R) to (..., O), without alpha."""
        return F.linear(low, self.up_OR)

    def forward(self, x: Tensor) -> Tensor:
        """alpha * B A x: (..., I) to (..., O). Alpha multiplies where the tensor is smallest."""
        return self.up(self.alpha * self.low(x))

    def update(self) -> Update:
        """A, B, alpha and dropout for one operation with the frozen layer."""
        dropout = self.dropout if self.training else 0.0
        return Update(self.down_RI, self.up_OR, self.alpha, dropout=dropout)

    def folded(self, weight_OI: Tensor) -> Tensor:
        """The weight (O, I) with the correction: W + alpha B A."""
        return weight_OI + self.alpha * self.up_OR @ self.down_RI


def describe(obj: Any) -> dict[str, Any]:
    """Class path and constructor arguments of a strategy, composer or readout, as plain types."""
    kind = type(obj)
    module = kind.__module__
    package = sys.modules["kora.adapters"]
    if getattr(package, kind.__qualname__, None) is kind:  # the short path, where there is one
        module = "kora.adapters"
    arguments = {k: _plain(v) for k, v in _arguments(obj).items()}
    return {"class_path": f"{module}.{kind.__qualname__}", "init_args": arguments}


def resized(strategy: Strategy, size: int) -> Strategy:
    """A strategy like one that is not attached yet, with another value of its `size_argument`."""
    assert strategy.size_argument is not None, "it has no size"
    arguments = {**copy.deepcopy(_arguments(strategy)), strategy.size_argument: size}
    made = type(strategy)(**arguments)
    made.take_over(strategy)
    return made


def require_probability(strategy: str, **settings: float) -> None:
    """Refuse probabilities outside [0, 1): of 1 nothing would be left."""
    for key, value in settings.items():
        if not 0 <= value < 1:
            raise ValueError(f"{strategy}: {key}={value}, expected a probability in [0, 1).")


def require_positive(strategy: str, **settings: int) -> None:
    """Refuse sizes below one: they would leave nothing to train."""
    for key, value in settings.items():
        if value < 1:
            raise ValueError(
                f"{strategy}: {key}={value}, expected 1 or more. For no adapter at all, use "
                "LinearProbe."
            )


def require_effect(strategy: str, alpha: float) -> None:
    """Refuse an alpha of zero: it would train tensors that never change the output."""
    if not math.isfinite(alpha):
        raise ValueError(f"{strategy}: alpha={alpha}, expected a finite number other than 0.")
    if alpha == 0:
        raise ValueError(
            f"{strategy}: alpha=0 multiplies the adapter away. For no adapter, use LinearProbe."
        )


def require_choice(owner: str, key: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a word that means nothing here; Python does not check Literals by itself."""
    if value not in choices:
        raise ValueError(f"{owner}: {key}='{value}', expected one of {', '.join(choices)}.")


def _arguments(obj: Any) -> dict[str, Any]:
    parameters = inspect.signature(type(obj)).parameters.values()
    named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return {name: getattr(obj, name) for name in named}


def _is_plain(value: Any) -> bool:
    return not isinstance(value, nn.Module)


def _plain(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return describe(value)
    return list(value) if isinstance(value, tuple | list) else value
