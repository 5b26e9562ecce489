"""`vit_nano`: the packaged vision transformer, registered with timm; it needs no download.

1.2 M parameters: 64 pixels, patches of 8, width 128, 6 blocks, 4 heads. The weights in
`kora/backbone/vit_nano.safetensors` (float16) are written by this repository
(`make pretrain-nano`); `kora/backbone/VIT_NANO.md` describes them and their accuracy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

__all__ = ["WEIGHTS", "vit_nano"]

WEIGHTS = Path(__file__).parent / "vit_nano.safetensors"

default_cfgs = generate_default_cfgs(
    {
        "vit_nano.studio": {
            "file": str(WEIGHTS),
            "num_classes": 0,
            "input_size": (3, 64, 64),
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": "apache-2.0",
        }
    }
)


@register_model
def vit_nano(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT with 6 blocks of width 128 for 64-pixel images."""
    args = {"img_size": 64, "patch_size": 8, "embed_dim": 128, "depth": 6, "num_heads": 4}
    model: VisionTransformer = build_model_with_cfg(
        VisionTransformer, "vit_nano", pretrained, pretrained_strict=True,
        pretrained_filter_fn=checkpoint_filter_fn, **{**args, **kwargs},
    )  # fmt: skip
    return model
