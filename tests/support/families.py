"""A tiny random model of each family of vision transformers, by names that timm then knows.

They are timm's own architectures, narrowed: width 32, two blocks of two heads, 2 x 2 patches, some
50,000 parameters. Those of tests/support/factory.py have more blocks.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import timm
import torch
from timm.models import register_model

from kora.backbone.vit import Backbone

__all__ = ["DEAD_QKV", "TINY", "register_narrow", "tiny"]

#: Own name: the model of timm that it is a small one of, and the side in pixels at which it runs.
TINY = {
    "tiny_vit": ("vit_tiny_patch16_224", 32),
    "tiny_deit_distilled": ("deit_tiny_distilled_patch16_224", 32),  # two prefix tokens, averaged
    "tiny_deit3": ("deit3_small_patch16_224", 32),  # CLS without a position, layer scale
    "tiny_dinov2": ("vit_small_patch14_dinov2", 28),
    "tiny_dinov2_registers": ("vit_small_patch14_reg4_dinov2", 28),
    "tiny_dinov3": ("vit_small_patch16_dinov3", 32),  # rotary positions, registers
    "tiny_clip": ("vit_base_patch32_clip_224", 64),
    "tiny_gap_registers": ("vit_so150m_patch16_reg4_gap_256", 32),  # registers and no CLS
    "tiny_siglip": ("vit_base_patch16_siglip_224", 32),  # no prefix token, attention pooling
    "tiny_eva02": ("eva02_tiny_patch14_224", 28),
    "tiny_eva02_split": ("eva02_base_patch14_224", 28),  # q, k and v are layers of their own
    "tiny_beit": ("beit_base_patch16_224", 32),
}
#: Families whose attention reads the weight of `qkv` and never calls the layer.
DEAD_QKV = ("tiny_eva02", "tiny_beit")


def register_narrow(name: str, original: str, **options: Any) -> None:
    """Have timm know a model of width 32 and two heads, otherwise like one of its own."""
    narrow = {"embed_dim": 32, "num_heads": 2, **options}

    def create(pretrained: bool = False, **kwargs: Any) -> Any:
        return timm.model_entrypoint(original)(pretrained, **{**narrow, **kwargs})

    create.__name__ = name
    register_model(create)


for _name, (_original, _) in TINY.items():
    register_narrow(_name, _original, depth=2)


@cache
def _drawn(name: str) -> Backbone:
    torch.manual_seed(0)
    return Backbone(name, weights="random", image_size=TINY[name][1])


def tiny(name: str) -> Backbone:
    """A fresh backbone of a family, always with the same random numbers."""
    return copy.deepcopy(_drawn(name))
