"""Tiny ViTs of other blocks than timm's usual one, registered with timm as anybody may.

`tiny("pre_norm")` and `tiny("post_norm")` have timm's own blocks; the other two are such that an
adapter on their MLP branch would have no place.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import Tensor, nn

from kora.backbone.vit import Backbone

__all__ = ["tiny"]


class NoMLPBlock(Block):
    """Owns an MLP branch and never calls it."""

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        return x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))


class UnseenMLPBlock(Block):
    """Adds its MLP without a module at the end of the branch."""

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return x + self.mlp(self.norm2(x))


_CFG = {"num_classes": 0, "input_size": (3, 32, 32), "interpolation": "bicubic"}
_CFG |= {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "classifier": "head"}
_NAMES = ("pre_norm", "post_norm", "no_mlp", "unseen_mlp")
default_cfgs = generate_default_cfgs({f"vit_test_{name}": _CFG for name in _NAMES})


def tiny(kind: str) -> Backbone:
    """Three blocks of a kind: 32 pixels, four patches, width 24, LayerScale of 0.5."""
    torch.manual_seed(0)
    return Backbone(f"vit_test_{kind}", weights="random")


def _build(name: str, block: type[nn.Module], **kwargs: Any) -> VisionTransformer:
    args = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 3, "num_heads": 3}
    args |= {"block_fn": block, "init_values": 0.5, **kwargs}
    model: VisionTransformer = build_model_with_cfg(VisionTransformer, name, **args)
    return model


@register_model
def vit_test_pre_norm(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    return _build("vit_test_pre_norm", Block, pretrained=pretrained, **kwargs)


@register_model
def vit_test_post_norm(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    return _build("vit_test_post_norm", ResPostBlock, pretrained=pretrained, **kwargs)


@register_model
def vit_test_no_mlp(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    return _build("vit_test_no_mlp", NoMLPBlock, pretrained=pretrained, **kwargs)


@register_model
def vit_test_unseen_mlp(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    return _build("vit_test_unseen_mlp", UnseenMLPBlock, pretrained=pretrained, **kwargs)
