"""Small backbones and built tasks, each in one call."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kora.adapters import Strategy
from kora.backbone.vit import Backbone
from kora.tasks import ClassificationTask
from tests.support.families import register_narrow

__all__ = ["FAMILIES", "LIVE", "built", "family", "kick", "labels_for", "nano"]

#: A narrow model of each family, and the side in pixels at which the tests run it. The first has
#: timm's twelve blocks, the others five.
FAMILIES = {
    "narrow_vit_tiny_patch16_224": 32,
    "narrow_deit_tiny_patch16_224": 32,
    "narrow_deit_tiny_distilled_patch16_224": 32,
    "narrow_deit3_small_patch16_224": 32,
    "narrow_vit_small_patch14_dinov2": 70,
    "narrow_vit_small_patch14_reg4_dinov2": 70,
    "narrow_vit_small_patch16_dinov3": 64,
    "narrow_vit_base_patch32_clip_224": 64,
    "narrow_vit_base_patch16_siglip_224": 64,
    "narrow_eva02_tiny_patch14_224": 56,
    "narrow_beit_base_patch16_224": 64,
}
#: The sites of those whose `qkv` timm never calls: it reads the weight.
LIVE = dict.fromkeys(
    ("narrow_eva02_tiny_patch14_224", "narrow_beit_base_patch16_224"), ("proj", "fc1", "fc2")
)

for _number, _name in enumerate(FAMILIES):
    register_narrow(_name, _name.removeprefix("narrow_"), depth=5 if _number else 12)


@cache
def _family(name: str) -> Backbone:
    torch.manual_seed(0)
    return Backbone(name, weights="random", image_size=FAMILIES[name])


def family(name: str) -> Backbone:
    """A fresh backbone of a family; its random numbers are drawn once, as that is slow."""
    return copy.deepcopy(_family(name))


@cache
def _nano(image_size: int | None = None) -> Backbone:
    torch.manual_seed(1)
    return Backbone("vit_nano", weights="random", image_size=image_size)


def nano(**options: Any) -> Backbone:
    """`vit_nano` with random weights of a fixed seed: 64 pixels, width 128, 6 blocks."""
    torch.manual_seed(1)
    if options.keys() - {"image_size"} or torch.empty(0).is_meta:
        return Backbone("vit_nano", weights="random", **options)
    drawn = copy.deepcopy(_nano(**options))
    torch.manual_seed(1)  # what is drawn next is the same, whether these were drawn here or earlier
    return drawn


def built(
    adapter: Strategy | None, *, backbone: Backbone | None = None, seed: int = 2, **options: Any
) -> ClassificationTask:
    """A built classification task of seven classes on `vit_nano`, or on the given backbone."""
    backbone = nano() if backbone is None else backbone
    torch.manual_seed(seed)
    options = {"num_classes": 7, **options}
    task = ClassificationTask(backbone, adapter, **options)
    task.build()
    return task


def kick(task: ClassificationTask, *, scale: float = 0.05, seed: int = 3) -> ClassificationTask:
    """Move all that trains away from its start, so that nothing is hidden behind a zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in task.trainables().values():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return task


def labels_for(images: Tensor) -> Tensor:
    """Labels (B,) below seven."""
    return torch.arange(len(images)) % 7
