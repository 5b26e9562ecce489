"""The strategies that the shared contract is held against: one entry for each method.

A new strategy adds an entry; tests/adapters/test_contract.py fails by name while it is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kora.adapters import (
    SSF,
    VPT,
    AdapterFusion,
    BitFit,
    Bottleneck,
    ClsReadout,
    Composer,
    DepthAttention,
    DoRA,
    FactoredMatrix,
    Feedback,
    FullFineTune,
    Injection,
    KoRA,
    LinearProbe,
    LogitReadout,
    LoRA,
    LowRankFusion,
    MultiLayerProbe,
    NodeForm,
    PaperForm,
    PlainMatrix,
    RefinedForm,
    ResidualSequential,
    Sequential,
    SharedMatrix,
    Strategy,
    Sum,
    TokenReadout,
)
from kora.backbone.vit import Backbone
from tests.support.families import DEAD_QKV, tiny
from tests.support.fusion_factory import tiny_sources

__all__ = ["STRATEGIES", "Change", "Entry"]

Options = Callable[[], dict[str, Any]]


def _tiny_vit() -> Backbone:
    return tiny("tiny_vit")


@dataclass(frozen=True)
class Change:
    """Another value of an argument whose effect shows only beside other settings.

    Args:
        value: The other value.
        given: Other arguments that hold on both sides of the comparison.
        backbone: Makes the backbone.
        refused: What is refused without the change, as a pattern of the error; None where both
            sides are accepted.
    """

    value: Any
    given: Mapping[str, Any] = field(default_factory=dict)
    backbone: Callable[[], Backbone] = _tiny_vit
    refused: str | None = None


@dataclass(frozen=True)
class Entry:
    """A strategy with its arguments; calling it makes a fresh one, with changes where given.

    It is one for `tiny_vit`, or for another family that is named.

    Args:
        kind: The class.
        options: Its arguments, made anew for every strategy, as modules may be among them.
        changes: For each argument of the constructor another value, or a `Change`. Once for each
            class is enough.
        starts_elsewhere: Whether it differs from the frozen backbone before the first step.
        refused: Families that it cannot adapt, with a pattern of the error that says so.
        needs: Arguments that it needs on some families, and without which it is refused there.
        files: Arguments that name files of a family, written when they are first asked for.
        everywhere: Whether it is tried on every family; not where another entry of the class
            reaches the backbone in the same way.
    """

    kind: type[Strategy]
    options: Options = dict
    changes: Options = dict
    starts_elsewhere: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)
    needs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    files: Callable[[str], dict[str, Any]] = lambda family: {}
    everywhere: bool = True

    def __call__(self, family: str = "tiny_vit", **changed: Any) -> Strategy:
        return self.kind(**{**self.options(), **self.files(family), **changed})


class LastNode(Composer):
    """The vector of the last node, alone."""

    def build(self, num_nodes: int, d_comp: int) -> None:
        """Nothing to create."""

    def forward(self, nodes: Sequence[Tensor]) -> Tensor:
        """L tensors (..., C) to the last one."""
        return nodes[-1]


def _with_head() -> Backbone:
    torch.manual_seed(0)
    return Backbone("tiny_vit", weights="random", image_size=32, keep_classifier=True)


def _bottlenecks(family: str) -> dict[str, Any]:
    return {"sources": tiny_sources(family, "bottleneck")}


def _loras(family: str) -> dict[str, Any]:
    return {"sources": tiny_sources(family, "lora")}


LOW_RANK: dict[str, Any] = {"rank": 2, "alpha": 0.5, "sites": ["q", "v", "proj"]}
OTHER_LOW_RANK: dict[str, Any] = {
    "rank": 3,
    "alpha": 0.7,
    "dropout": 0.5,
    "sites": ["q", "k", "proj"],
    "blocks": [1],
}

#: Where `qkv` is never called, or is not one layer.
LIVE = {family: {"sites": ("proj", "fc2")} for family in DEAD_QKV}
SPLIT_ALL = {"tiny_eva02_split": {"sites": ("proj", "fc2")}}
SPLIT = {"tiny_eva02_split": {"sites": ("q", "v", "proj")}}


def _in_form(
    make: Callable[..., NodeForm], needs: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """What a KoRA needs on some families, of whose nodes it is."""
    return {family: {"node_form": make(**options)} for family, options in needs.items()}


def _side(**options: Any) -> PaperForm:
    return PaperForm(2, inject=False, **options)


def _tokens(sites: Sequence[str] = ("proj", "v")) -> PaperForm:
    return PaperForm(2, pool="tokens", sites=sites)


def _apart(sites: Sequence[str] = ("proj", "v")) -> RefinedForm:
    inject = Injection(2, sites=sites)
    return RefinedForm(pool="attention", sites=sites, inject=inject)


#: That have no CLS token.
NO_CLS = dict.fromkeys(("tiny_gap_registers", "tiny_siglip"), "reads the CLS token")

#: Whose attention knows the place of each token.
PLACED = dict.fromkeys(
    ("tiny_dinov3", "tiny_eva02", "tiny_eva02_split", "tiny_beit"), "knows the place of each"
)

STRATEGIES: dict[str, Entry] = {
    "LinearProbe": Entry(LinearProbe),
    "MultiLayerProbe": Entry(
        MultiLayerProbe,
        lambda: {"cls_blocks": [0, 1], "mean_blocks": [1]},
        changes=lambda: {"layer": "block", "cls_blocks": [0], "mean_blocks": [0, 1]},
        refused=NO_CLS,
    ),
    "FullFineTune": Entry(FullFineTune),
    "LoRA": Entry(
        LoRA,
        LOW_RANK.copy,
        changes=lambda: {
            **OTHER_LOW_RANK,
            "allow_dead_sites": Change(
                True, given={"sites": ["head"]}, backbone=_with_head, refused="never called"
            ),
        },
        needs=LIVE,
    ),
    "KoRA": Entry(
        KoRA,
        lambda: {
            "node_form": PaperForm(2, sites=["q", "proj"]),
            "d_comp": 4,
            "alpha": 0.5,
            "composer": Sequential(),
            "readout": ClsReadout("default"),
        },
        changes=lambda: {
            "node_form": RefinedForm(),
            "d_comp": 5,
            "alpha": 0.7,
            "composer": LastNode(),
            "readout": ClsReadout("zero"),
            "feedback": Feedback(0),
        },
        starts_elsewhere=True,
        needs=_in_form(lambda **options: PaperForm(2, **options), LIVE),
    ),
    "KoRA-refined": Entry(
        KoRA,
        lambda: {
            "node_form": RefinedForm(pool="both", sites=["proj"]),
            "d_comp": 4,
            "composer": DepthAttention(),
        },
        refused=NO_CLS,
    ),
    "KoRA-refined-injected": Entry(
        KoRA,
        lambda: {"node_form": _apart(), "d_comp": 4, "composer": ResidualSequential()},
        needs=_in_form(_apart, LIVE),
    ),
    "KoRA-refined-apart": Entry(
        KoRA,
        lambda: {
            "node_form": RefinedForm(
                sites=["proj"], blocks=[-1], inject=Injection(2, sites=["proj", "fc1"])
            ),
            "d_comp": 4,
            "composer": Sum(),
        },
        everywhere=False,
    ),
    "KoRA-refined-factors": Entry(
        KoRA,
        lambda: {
            "node_form": RefinedForm(FactoredMatrix(2), sites=["proj", "fc2"]),
            "d_comp": 4,
            "composer": ResidualSequential(),
        },
        everywhere=False,
    ),
    "KoRA-refined-factors-injected": Entry(
        KoRA,
        lambda: {
            "node_form": RefinedForm(
                FactoredMatrix(2), sites=["proj", "fc2"], inject=Injection(3, sites=["proj"])
            ),
            "d_comp": 4,
            "composer": Sum(),
        },
        everywhere=False,
    ),
    "KoRA-refined-shared": Entry(
        KoRA,
        lambda: {
            "node_form": RefinedForm(SharedMatrix(), sites=["proj"]),
            "d_comp": 4,
            "composer": ResidualSequential(),
        },
        everywhere=False,
    ),
    "KoRA-refined-logits": Entry(
        KoRA,
        lambda: {
            "node_form": RefinedForm(sites=["proj"]),
            "d_comp": 4,
            "composer": Sum(),
            "readout": LogitReadout(),
        },
        everywhere=False,
        starts_elsewhere=True,
    ),
    "KoRA-refined-logits-from-zero": Entry(
        KoRA,
        lambda: {
            "node_form": RefinedForm(PlainMatrix("zero"), sites=["proj"]),
            "d_comp": 4,
            "composer": Sum(),
            "readout": LogitReadout("orthogonal"),
        },
        everywhere=False,
        starts_elsewhere=True,
    ),
    "KoRA-refined-tokens": Entry(
        KoRA,
        lambda: {
            "node_form": RefinedForm(pool="tokens", sites=["proj"]),
            "d_comp": 4,
            "composer": Sum(),
            "readout": TokenReadout(),
        },
        everywhere=False,
    ),
    "KoRA-spatial-tokens": Entry(
        KoRA,
        lambda: {
            "node_form": PaperForm(2, pool="tokens", sites=["proj"], spatial=True),
            "d_comp": 4,
            "readout": TokenReadout(),
        },
        everywhere=False,
    ),
    "KoRA-feedback-of-tokens": Entry(
        KoRA,
        lambda: {
            "node_form": RefinedForm(pool="tokens", sites=["proj"]),
            "d_comp": 4,
            "composer": DepthAttention(),
            "feedback": Feedback(0),
        },
        everywhere=False,
    ),
    "KoRA-feedback": Entry(
        KoRA,
        lambda: {
            "node_form": RefinedForm(sites=["proj"]),
            "d_comp": 4,
            "composer": Sum(),
            "feedback": Feedback(1),
        },
    ),
    "KoRA-side": Entry(
        KoRA,
        lambda: {"node_form": _side(), "d_comp": 4},
        needs=_in_form(_side, {**LIVE, **SPLIT}),
    ),
    "KoRA-tokens": Entry(
        KoRA,
        lambda: {"node_form": _tokens(), "d_comp": 4, "readout": TokenReadout()},
        needs=_in_form(_tokens, LIVE),
    ),
    "KoRA-tokens-to-CLS": Entry(
        KoRA, lambda: {"node_form": _tokens(), "d_comp": 4}, needs=_in_form(_tokens, LIVE)
    ),
    "KoRA-published": Entry(
        KoRA,
        lambda: {
            "node_form": _side(),
            "d_comp": 4,
            "readout": ClsReadout("default", trainable=False),
        },
        starts_elsewhere=True,
        needs=_in_form(_side, {**LIVE, **SPLIT}),
    ),
    "BitFit": Entry(BitFit, changes=lambda: {"blocks": [1], "outer": False}),
    "SSF": Entry(
        SSF,
        lambda: {"sites": ["qkv", "proj"]},
        changes=lambda: {
            "sites": ["proj", "fc2"],
            "norms": False,
            "outer": False,
            "blocks": [1],
            "init_std": 0.02,
        },
        needs={**LIVE, **SPLIT_ALL},
    ),
    "DoRA": Entry(DoRA, LOW_RANK.copy, changes=OTHER_LOW_RANK.copy, needs=LIVE),
    "VPT": Entry(
        VPT,
        lambda: {"prompts": 3},
        changes=lambda: {"prompts": 4, "deep": False, "dropout": 0.5, "blocks": [1]},
        starts_elsewhere=True,
        refused=PLACED,
    ),
    "VPT-shallow": Entry(
        VPT, lambda: {"prompts": 3, "deep": False}, starts_elsewhere=True, refused=PLACED
    ),
    "Bottleneck": Entry(
        Bottleneck,
        lambda: {"rank": 3, "position": "houlsby", "alpha": 0.5},
        changes=lambda: {
            "rank": 4,
            "position": "post",
            "activation": "gelu",
            "scale": "channel",
            "alpha": 0.7,
            "dropout": 0.5,
            "drop_path": 0.5,
            "init": "lora",
            "blocks": [1],
        },
        starts_elsewhere=True,
    ),
    "Bottleneck-zero": Entry(Bottleneck, lambda: {"rank": 3, "init": "lora"}),
    "Bottleneck-parallel": Entry(
        Bottleneck,
        lambda: {"rank": 3, "position": "parallel", "scale": "layer"},
        starts_elsewhere=True,
    ),
    "Adapter+": Entry(
        Bottleneck,
        lambda: {"rank": 3, "position": "post", "activation": "gelu", "scale": "channel"},
        starts_elsewhere=True,
    ),
    "AdapterFusion": Entry(
        AdapterFusion,
        changes=lambda: {"sources": _bottlenecks("tiny_vit")["sources"][::-1], "regulariser": 0.5},
        starts_elsewhere=True,
        files=_bottlenecks,
    ),
    "LowRankFusion": Entry(
        LowRankFusion,
        lambda: {"rank": 2},
        changes=lambda: {
            "sources": _loras("tiny_vit")["sources"][::-1],
            "rank": 3,
            "regulariser": 0.5,
        },
        starts_elsewhere=True,
        files=_loras,
    ),
}
