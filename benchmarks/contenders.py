"""What is compared: strategies of kora, peers, and the frozen backbone, each from images to logits.

All stand on one backbone and share its frozen weights; what trains the backbone has a copy.

Shapes: B images, N tokens, I input width, O output width, C width of the composition, D width.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kora.adapters import (
    SSF,
    VPT,
    BitFit,
    Bottleneck,
    DoRA,
    FullFineTune,
    KoRA,
    LinearProbe,
    LoRA,
    PaperForm,
    Strategy,
)
from kora.backbone.sites import ALL_SITES, find_sites
from kora.backbone.vit import Backbone
from tests.support.factory import built

__all__ = [
    "CLASSES", "CONTENDERS", "DEFAULT", "FLOOR", "FORWARD", "PEER",
    "Frozen", "contenders", "shared",
]  # fmt: skip

CLASSES = 100
RANK = 8
PEER, FORWARD, FLOOR = "LoRA of peft", "frozen forward", "frozen forward and backward"


class OfPeft(nn.Module):
    """peft's LoRA or DoRA on the same four layers of each block, and a linear head."""

    def __init__(self, backbone: Backbone, *, use_dora: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        import peft

        # `proj` also names the convolution of the patch embedding.
        config = peft.LoraConfig(
            r=RANK,
            lora_alpha=RANK,
            target_modules=r"blocks\..*\.(qkv|proj|fc1|fc2)",
            use_dora=use_dora,
            lora_dropout=dropout,
        )
        self.head = nn.Linear(backbone.pooled_width, CLASSES)
        backbone.model = peft.get_peft_model(backbone.model, config).base_model.model
        self.backbone = backbone

    def train(self, mode: bool = True) -> OfPeft:
        """peft's dropout too, which lies in a backbone that stays in eval mode."""
        super().train(mode)
        self.backbone.model.train(mode)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Logits of (B, 3, H, W) images."""
        logits: Tensor = self.head(self.backbone(images).pooled)
        return logits


class Frozen(nn.Module):
    """The backbone and a linear head, with all tokens of the last block: what ratios refer to."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.head = nn.Linear(backbone.pooled_width, CLASSES)
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """Logits of (B, 3, H, W) images."""
        logits: Tensor = self.head(self.backbone(images).pooled)
        return logits


class Floor(Frozen):
    """The backbone with one trained vector behind its patch embedding: the least of any adapter.

    A gradient passes through all of it, and to no weight.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.offset_D = nn.Parameter(torch.zeros(backbone.width))
        backbone.model.patch_embed.register_forward_hook(lambda *seen: seen[-1] + self.offset_D)


class KoRAAsPublished(nn.Module):
    """KoRA as its author's notebook computes it: for every token, from inputs kept by hooks.

    o_i = B_i A_i x_i of the detached inputs, p_i = mean over tokens of P_i o_i; the chain of the
    paper (equation 3); the readout is added to CLS.
    Source: the vision notebook of OnePunchMonk/KoRA (2025).
    """

    def __init__(self, backbone: Backbone, *, d_comp: int = RANK) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        self.projections, self.phis, self.psis = (nn.ModuleList() for _ in range(3))
        for site in find_sites(backbone, ALL_SITES):
            layer = backbone.model.get_submodule(site.path)
            layer.register_forward_pre_hook(self._keep)
            self.downs.append(nn.Linear(site.d_in, RANK, bias=False))
            self.ups.append(nn.Linear(RANK, site.d_out, bias=False))
            self.projections.append(nn.Linear(site.d_out, d_comp, bias=False))
            self.phis.append(nn.Sequential(nn.Linear(d_comp, d_comp), nn.GELU()))
            self.psis.append(nn.Sequential(nn.Linear(d_comp, d_comp), nn.GELU()))
        self.readout = nn.Linear(d_comp, backbone.pooled_width)
        self.head = nn.Linear(backbone.pooled_width, CLASSES)
        self.backbone = backbone

    def _keep(self, layer: nn.Module, inputs: tuple[Tensor]) -> None:
        self.inputs.append(inputs[0].detach())

    def forward(self, images: Tensor) -> Tensor:
        """Logits of (B, 3, H, W) images."""
        pooled_BD = self.backbone(images).pooled
        inputs, self.inputs = self.inputs, []
        composed_BC: Tensor | None = None
        parts = zip(inputs, self.downs, self.ups, self.projections, strict=True)
        for i, (x_BNI, down, up, project) in enumerate(parts):
            p_BC = project(up(down(x_BNI))).mean(1)
            if composed_BC is not None:
                p_BC = p_BC + self.psis[i - 1](composed_BC)
            composed_BC = self.phis[i](p_BC)
        logits: Tensor = self.head(pooled_BD + self.readout(composed_BC))
        return logits


def shared(backbone: Backbone) -> Backbone:
    """A copy that can be wrapped by itself; its frozen tensors are those of the original."""
    tensors = (*backbone.parameters(), *backbone.buffers())
    return copy.deepcopy(backbone, {id(tensor): tensor for tensor in tensors})


def _with(strategy: Callable[[], Strategy], backbone: Backbone) -> nn.Module:
    return built(strategy(), backbone=shared(backbone), num_classes=CLASSES)


def _training(strategy: Callable[[], Strategy], backbone: Backbone) -> nn.Module:
    """Of a strategy that trains tensors of the backbone itself."""
    return built(strategy(), backbone=copy.deepcopy(backbone), num_classes=CLASSES)


def _kora(**options: Any) -> Strategy:
    return KoRA(PaperForm(RANK, **options), 8)


def _peer(backbone: Backbone, **options: Any) -> nn.Module:
    return OfPeft(shared(backbone), **options)


def _bare(kind: Callable[[Backbone], nn.Module], backbone: Backbone) -> nn.Module:
    return kind(shared(backbone))


_ADAPTER_PLUS = {"position": "post", "activation": "gelu", "scale": "channel"}
_DROPOUT = 0.3

#: What makes each, given the backbone; peers first. All have rank 8 and, where they have one,
#: width 8 of the composition.
CONTENDERS: dict[str, Callable[[Backbone], nn.Module]] = {
    PEER: _peer,
    "DoRA of peft": partial(_peer, use_dora=True),
    "LoRA with dropout of peft": partial(_peer, dropout=_DROPOUT),
    "KoRA as published": partial(_bare, KoRAAsPublished),
    "LoRA": partial(_with, partial(LoRA, RANK)),
    "LoRA with dropout": partial(_with, partial(LoRA, RANK, dropout=_DROPOUT)),
    "KoRA": partial(_with, _kora),
    "KoRA on CLS": partial(_with, partial(_kora, pool="cls")),
    "KoRA-side": partial(_with, partial(_kora, inject=False)),
    "KoRA-tokens": partial(_with, partial(_kora, pool="tokens")),
    "DoRA": partial(_with, partial(DoRA, RANK)),
    "SSF": partial(_with, SSF),
    "Adapter+": partial(_with, partial(Bottleneck, RANK, **_ADAPTER_PLUS)),
    "BitFit": partial(_training, BitFit),
    "VPT": partial(_with, VPT),
    "full fine-tuning": partial(_training, FullFineTune),
    "linear probe": partial(_with, LinearProbe),
    FLOOR: partial(_bare, Floor),
}
DEFAULT = (
    PEER,
    "LoRA",
    "KoRA",
    "KoRA on CLS",
    "KoRA as published",
    "KoRA-side",
    "linear probe",
    "full fine-tuning",
    FLOOR,
)


def contenders(backbone: Backbone, names: Sequence[str] = DEFAULT) -> dict[str, nn.Module]:
    """Modules from images to logits, by name; peers that are not installed are left out."""
    there = importlib.util.find_spec("peft") is not None
    if not there and any(name.endswith("of peft") for name in names):
        print("peft is not installed (pip install 'kora-vit[bench]'): left out.", file=sys.stderr)
    chosen = [name for name in names if there or not name.endswith("of peft")]
    return {name: CONTENDERS[name](backbone) for name in chosen}
