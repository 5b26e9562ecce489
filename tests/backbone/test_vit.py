"""Claims about the frozen backbone and its input; weights are in test_weights.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import timm.layers
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from kora.backbone.vit import Backbone, usual_size
from tests.support.factory import FAMILIES, LIVE, family, nano


def independently_normalised(images: Tensor, size: int, cfg: dict[str, object]) -> Tensor:
    """The documented input of timm's models, written without our code."""
    x = images.double() / 255
    x = F.interpolate(x, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(cfg[k], dtype=torch.float64) for k in ("mean", "std"))
    return ((x - mean[:, None, None]) / std[:, None, None]).float()


@pytest.mark.parametrize("name", FAMILIES)
def test_features_equal_those_of_timm_on_images_normalised_by_hand(
    name: str, images: Tensor
) -> None:
    backbone = family(name)
    reference = backbone.model  # timm's own object, unwrapped
    x = independently_normalised(
        images, FAMILIES[name], timm.get_pretrained_cfg(name.removeprefix("narrow_")).to_dict()
    )
    prefix = reference.num_prefix_tokens
    with torch.no_grad():
        tokens = reference.forward_features(x)
        pooled = reference.forward_head(tokens, pre_logits=True)
        _, levels = reference.forward_intermediates(
            x, indices=[1, 4], norm=True, return_prefix_tokens=True, output_fmt="NLC"
        )
        features = backbone(images)
        with_levels = backbone(images, levels=(1, 4))
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(features.pooled, pooled, **close)
    torch.testing.assert_close(features.prefix, tokens[:, :prefix], **close)
    torch.testing.assert_close(features.patches, tokens[:, prefix:], **close)
    torch.testing.assert_close(with_levels.pooled, pooled, **close)
    for mine, theirs in zip(with_levels.levels, levels, strict=True):
        patches, first = theirs if isinstance(theirs, tuple) else (theirs, theirs[:, :0])
        torch.testing.assert_close(mine.patches, patches, **close)
        torch.testing.assert_close(mine.prefix, first, **close)
    assert features.pooled.shape == (len(images), backbone.pooled_width)
    assert features.patches.shape[2] == backbone.width
    assert features.prefix.shape[1] == backbone.num_prefix_tokens
    assert backbone.has_cls == ("siglip" not in name)


def test_levels_of_a_model_without_prefix_tokens_are_patches_alone(images: Tensor) -> None:
    backbone = Backbone("vit_relpos_small_patch16_224", weights="random", image_size=64)
    level = backbone(images, levels=(1,)).levels[0]
    assert level.patches.shape == (3, 16, 384)
    assert level.prefix.shape == (3, 0, 384)


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (64, 64), (30, 200), (300, 220)])
def test_images_of_any_size_are_accepted(size: tuple[int, int]) -> None:
    features = nano()(torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8))
    assert features.patches.shape == (2, 64, 128)
    assert torch.isfinite(features.pooled).all()


@pytest.mark.parametrize("size", [(64, 64), (48, 40)])
def test_uint8_and_unit_floats_give_equal_features(size: tuple[int, int]) -> None:
    backbone = nano()
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    assert torch.equal(backbone(images).pooled, backbone(images.float() / 255).pooled)


def test_an_image_is_not_changed_by_being_read(images: Tensor) -> None:
    floats = images.float() / 255
    before = floats.clone()
    nano()(floats)
    assert torch.equal(floats, before)


def test_image_size_sets_the_resolution(images: Tensor) -> None:
    assert nano(image_size=32)(images).patches.shape[1] == 16
    assert nano()(images).patches.shape[1] == 64


def test_mean_and_std_are_those_of_the_weights_that_the_tag_names() -> None:
    augreg = Backbone("vit_tiny_patch16_224.augreg_in21k", weights="random")
    clip = family("narrow_vit_base_patch32_clip_224")
    assert augreg.mean.flatten().tolist() == [0.5, 0.5, 0.5]
    assert clip.mean.flatten().tolist() == pytest.approx([0.48145466, 0.4578275, 0.40821073])


def test_another_mean_and_std_replace_those_of_the_weights_and_are_facts(images: Tensor) -> None:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    own = Backbone("vit_nano")
    changed = Backbone("vit_nano", mean=mean, std=std)
    white = torch.ones(1, 3, *changed.size)
    by_hand = torch.tensor([(1 - m) / s for m, s in zip(mean, std, strict=True)])
    torch.testing.assert_close(changed.preprocess(white)[0, :, 0, 0], by_hand)
    assert not torch.equal(changed(images).pooled, own(images).pooled)
    assert changed.sha256 == own.sha256, "the weights are the same"
    assert changed.facts == {**own.facts, "mean": mean, "std": std}
    assert own.normalisation == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": [0.5, 0.5, 0.5]}, r"backbone.std is missing: .* Give both"),
        ({"std": [0.5, 0.5, 0.5]}, r"backbone.mean is missing"),
        ({"mean": [0.5], "std": [0.5, 0.5, 0.5]}, r"backbone.mean=\[0.5\]: expected three numbers"),
        ({"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5]}, r"backbone.std=.*three numbers above 0"),
        ({"mean": [123.7, 116.3, 103.5], "std": [1.0, 1.0, 1.0]}, r"three numbers in \[0, 1\]"),
        ({"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.0, 0.5]}, r"three numbers above 0"),
        ({"mean": [0.5, 0.5, float("nan")], "std": [0.5, 0.5, 0.5]}, r"backbone.mean=.*nan"),
    ],
    ids=["no_std", "no_mean", "one", "two", "of_255", "zero_std", "nan"],
)
def test_a_normalisation_without_three_numbers_is_refused(
    options: dict[str, list[float]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Backbone("vit_nano", weights="random", **options)


def test_levels_come_in_the_order_in_which_they_are_asked_for(images: Tensor) -> None:
    backbone = nano()
    one, four = backbone(images, levels=[1]).levels[0], backbone(images, levels=[4]).levels[0]
    asked = backbone(images, levels=[4, 1, 4]).levels
    assert [torch.equal(level.patches, four.patches) for level in asked] == [True, False, True]
    assert torch.equal(asked[1].patches, one.patches)


@pytest.mark.parametrize("levels", [[6], [-1], [0, 99]])
def test_a_level_outside_of_the_depth_is_refused(levels: list[int], images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"levels=.*expected numbers from 0 to 5"):
        nano()(images, levels=levels)


def test_it_is_frozen_and_in_eval_mode_also_after_train() -> None:
    backbone = nano()
    backbone.train()
    torch.nn.Sequential(backbone).train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_features_follow_the_dtype_of_the_weights(images: Tensor) -> None:
    backbone = nano()
    backbone.model.to(torch.bfloat16)
    assert backbone(images).pooled.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(2, 1, 8, 8), r"shape \(2, 1, 8, 8\); expected \(batch, 3, height, width\)"),
        (torch.zeros(2, 4, 8, 8, dtype=torch.uint8), r"shape \(2, 4, 8, 8\).*RGB"),
        (torch.zeros(3, 8, 8), r"shape \(3, 8, 8\); expected \(batch, 3"),
        (torch.full((2, 3, 8, 8), -0.1), r"range from -0.1 to -0.1; expected \[0, 1\]"),
        (torch.full((2, 3, 8, 8), 1.5), r"range from 1.5 to 1.5; expected \[0, 1\]"),
        (torch.full((2, 3, 8, 8), 255.0), r"expected \[0, 1\].*pass raw images"),
        (torch.full((2, 3, 8, 8), torch.nan), r"range from nan to nan; expected \[0, 1\]"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), r"dtype torch.int64; expected uint8"),
    ],
    ids=["grey", "rgba", "no_batch", "negative", "above_one", "floats_to_255", "nan", "int64"],
)
def test_a_wrong_image_is_one_clear_error(bad: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nano()(bad)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit_tiny_patch16_242", {}, r"no model 'vit_tiny_patch16_242'. Did you mean vit_tiny_p"),
        ("vit_nanno", {}, r"Did you mean vit_nano"),
        ("vit_smal", {}, r"Did you mean vit_small_patch\d+\w* or vit_small_patch"),
        ("zzz", {}, r"no model 'zzz'\.$"),
        ("vit_tiny_patch16_224.mine", {}, r"tag.*Weights of this architecture: vit_tiny_patch16"),
        ("swin_tiny_patch4_window7_224", {}, r"SwinTransformer.*not of timm's VisionTransformer"),
        ("resnet18", {}, r"ResNet.*not of timm's VisionTransformer"),
        ("naflexvit_base_patch16_gap", {}, r"NaFlexVit.*not of timm's VisionTransformer"),
        pytest.param(
            "qwen3_vit_88m_enc",
            {"image_size": 32},
            r"Qwen3VitEncoder.*not of timm's Vision",
            marks=pytest.mark.skipif(
                not timm.is_model("qwen3_vit_88m_enc"), reason="newer than this timm"
            ),
        ),
        ("cait_xxs24_224", {}, r"Cait.*not of timm's VisionTransformer"),
        ("vit_tiny_patch16_224", {"image_size": 40}, r"40 is not a positive multiple of 16.*32"),
        ("vit_tiny_patch16_224", {"image_size": 8}, r"8 is not a positive multiple of 16.*16"),
        ("vit_tiny_patch16_224", {"image_size": 16384}, r"expected at most 8192 pixels a side"),
        ("vit_tiny_patch16_224", {"image_size": 0}, r"model.backbone.image_size"),
        ("vit_tiny_patch16_224", {"image_size": -16}, r"model.backbone.image_size"),
    ],
)
def test_a_wrong_model_or_size_is_one_clear_error(
    name: str, options: dict[str, int], message: str
) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        Backbone(name, weights="random", **options)  # without drawing 88 million numbers


def test_keep_classifier_only_counts(images: Tensor) -> None:
    torch.manual_seed(0)
    kept = Backbone("vit_tiny_patch16_224", weights="random", image_size=32, keep_classifier=True)
    without = Backbone("vit_tiny_patch16_224", weights="random", image_size=32)
    extra = sum(p.numel() for p in kept.parameters()) - sum(p.numel() for p in without.parameters())
    assert extra == 192 * 1000 + 1000
    kept.model.load_state_dict(without.model.state_dict(), strict=False)
    assert torch.equal(kept(images).pooled, without(images).pooled)


def test_a_rectangular_size_keeps_rows_and_columns_apart(images: Tensor) -> None:
    backbone = nano(image_size=(32, 56))
    assert backbone.size == (32, 56)
    assert backbone.grid == (4, 7)
    assert backbone(images).patches.shape[1] == 28
    # A change in the lower right corner of the image is felt most by the last token.
    changed = images.clone()
    changed[..., -images.shape[2] // 8 :, -images.shape[3] // 8 :] = 255
    moved = (backbone.preprocess(changed) != backbone.preprocess(images)).any(dim=1)
    assert moved.shape[1:] == (32, 56)
    assert not moved[:, :24].any()


@pytest.mark.parametrize(("size", "better"), [((32, 57), r"\[32, 56\]"), ((3, 64), r"\[8, 64\]")])
def test_a_rectangle_that_the_patches_do_not_fill_is_refused(
    size: tuple[int, int], better: str
) -> None:
    with pytest.raises(ValueError, match=rf"is not a positive multiple of 8.*Use {better}"):
        nano(image_size=size)


def test_the_levels_of_the_head_come_with_every_pass(images: Tensor) -> None:
    backbone = nano()
    backbone.levels = (4, 1)
    with_head = backbone(images)
    asked = backbone(images, levels=[4, 1])
    for mine, theirs in zip(with_head.levels, asked.levels, strict=True):
        assert torch.equal(mine.patches, theirs.patches)
    assert backbone(images, levels=[]).levels == ()


def test_the_calls_of_a_forward_pass_are_seen_in_the_order_in_which_they_return() -> None:
    calls = nano().calls()
    first = [path.removeprefix("blocks.0.") for path in calls if path.startswith("blocks.0.")]
    named = ["norm1", "attn.qkv", "attn.proj", "attn", "norm2", "mlp.fc1", "mlp.fc2", "mlp"]
    assert [path for path in first if path in named] == named
    ends = [f"blocks.{i}" for i in range(6)]
    assert [path for path in calls if path in ends] == ends


@pytest.mark.parametrize("name", LIVE)
def test_a_layer_whose_weight_is_read_directly_is_not_called(name: str) -> None:
    calls = family(name).calls()
    assert "blocks.0.attn.qkv" not in calls
    assert "blocks.0.attn.proj" in calls


def test_the_calls_follow_what_is_hooked_into_the_twin_and_not_the_backbone() -> None:
    backbone = nano()
    seen: list[tuple[int, ...]] = []

    def prepare(twin: nn.Module) -> None:
        block = twin.get_submodule("blocks.0")
        block.register_forward_hook(lambda _, __, output: output[:, :3])
        block.register_forward_hook(lambda _, __, output: seen.append(tuple(output.shape)))

    backbone.calls(prepare)
    assert seen == [(1, 3, 128)]
    assert not backbone.model.blocks[0]._forward_hooks


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("vit_small_patch14_dinov2", (1, 1 + 5 * 5, 8), 70),
        ("vit_small_patch14_dinov2", (1, 1 + 37 * 37, 8), 224),
        ("vit_tiny_patch16_224", None, 224),
        ("vit_small_patch14_dinov2", None, 224),
        ("vit_nano", None, 64),
        ("no_such_model", None, None),
    ],
)
def test_weights_run_at_their_own_size_or_the_largest_that_is_wished(
    name: str, shape: tuple[int, ...] | None, expected: int | None, tmp_path: Path
) -> None:
    weights = "pretrained"
    if shape is not None:
        weights = str(tmp_path / "w.safetensors")
        save_file({"pos_embed": torch.zeros(shape)}, weights)
    assert usual_size(name, weights, most=224) == expected


@pytest.mark.parametrize(
    ("side", "bfloat16", "fused"), [(64, False, 6), (64, True, 0), (256, True, 6)]
)
def test_attention_is_plain_in_bfloat16_with_few_tokens_and_else_fused(
    side: int, bfloat16: bool, fused: int, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = nano(image_size=side)
    calls: list[int] = []
    real = F.scaled_dot_product_attention

    def counted(*args: Any, **options: Any) -> Tensor:
        calls.append(1)
        return real(*args, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        pooled = backbone(images).pooled
    assert len(calls) == fused
    torch.testing.assert_close(pooled.float(), backbone(images).pooled, rtol=0.05, atol=0.05)
    assert len(calls) == fused + 6  # float32 is fused again


def test_attention_that_the_user_unfused_stays_plain(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm.layers.set_fused_attn(False)
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)
    try:
        assert nano(keep_classifier=True)(images).pooled.shape == (len(images), 128)
    finally:
        timm.layers.set_fused_attn(True)
