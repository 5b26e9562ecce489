"""Claims about SSF, against the published computation, and folded into the weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kora.adapters import SSF
from kora.adapters.base import place_of
from kora.backbone.sites import ALL_SITES
from kora.backbone.vit import Backbone
from tests.support.adapters import kept_numbers
from tests.support.factory import FAMILIES, LIVE, built, family, labels_for, nano

#: Layers without a bias, which can be scaled but take no shift.
WITHOUT_BIAS = {
    "narrow_vit_small_patch16_dinov3": "attn.qkv",
    "narrow_vit_base_patch32_clip_224": "patch_embed",
}
PUBLISHED = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]


def trained(backbone: Backbone, **options: Any) -> SSF:
    """SSF with random scales and shifts."""
    strategy = SSF(**options)
    strategy.attach(backbone)
    torch.manual_seed(6)
    with torch.no_grad():
        for parameter in strategy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return strategy


def as_published(backbone: Backbone, affines: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Multiply and add behind each layer by a hook: SSF's code, without its copy of timm."""

    def hook(scale: Tensor, shift: Tensor, dims: tuple[int, ...]) -> Any:
        return lambda module, inputs, y: y * scale.view(dims) + shift.view(dims)

    for path, (scale, shift) in affines.items():
        layer = backbone.model.get_submodule(path)
        dims = (-1, 1, 1) if isinstance(layer, nn.Conv2d) else (-1,)
        layer.register_forward_hook(hook(scale, shift, dims))


def test_output_and_gradients_equal_the_published_computation(images: Tensor) -> None:
    backbone, plain = nano(), nano()
    strategy = trained(backbone)
    paths = [f"blocks.{i}.{name}" for i in range(6) for name in PUBLISHED]
    affines = {a.path: a for a in strategy.modules() if hasattr(a, "path")}
    assert affines.keys() == {*paths, "patch_embed.proj", "norm"}
    leaves = {
        p: (a.scale_O.detach().clone(), a.shift_O.detach().clone()) for p, a in affines.items()
    }
    for pair in leaves.values():
        for leaf in pair:
            leaf.requires_grad_()
    as_published(plain, leaves)
    found, expected = strategy(backbone, images), plain(images)
    torch.testing.assert_close(found.patches, expected.patches, rtol=1e-4, atol=1e-4)
    nn.functional.cross_entropy(found.pooled, labels_for(images)).backward()
    nn.functional.cross_entropy(expected.pooled, labels_for(images)).backward()
    for path, (scale, shift) in leaves.items():
        close = {"rtol": 1e-3, "atol": 1e-5}
        torch.testing.assert_close(affines[path].scale_O.grad, scale.grad, **close)
        torch.testing.assert_close(affines[path].shift_O.grad, shift.grad, **close)


@pytest.mark.parametrize("name", ["vit_nano", *FAMILIES])
def test_folded_into_the_weights_it_gives_the_same_output(name: str) -> None:
    backbone, plain = (nano() if name == "vit_nano" else family(name) for _ in range(2))
    strategy = trained(backbone, sites=LIVE.get(name, ALL_SITES))
    for affine in strategy.modules():
        if WITHOUT_BIAS.get(name, "none") in getattr(affine, "path", ""):
            affine.shift_O.data.zero_()
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    plain.model.load_state_dict(strategy.merged(backbone))
    with torch.no_grad():
        found, expected = strategy(backbone, image), plain(image)
    torch.testing.assert_close(found.pooled, expected.pooled, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.patches, expected.patches, rtol=1e-3, atol=1e-4)
    assert backbone.sha256 != plain.sha256


@pytest.mark.parametrize("name", WITHOUT_BIAS)
def test_a_shift_that_no_bias_can_take_is_not_folded_in(name: str) -> None:
    backbone = family(name)
    strategy = trained(backbone)
    with pytest.raises(ValueError, match=rf"{WITHOUT_BIAS[name]}.* has no bias to take its shift"):
        strategy.merged(backbone)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_starts_at_its_frozen_features_and_every_number_trains(name: str) -> None:
    backbone, image = family(name), torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        frozen = backbone(image)
    strategy = SSF(LIVE.get(name, ALL_SITES))
    strategy.attach(backbone)
    found = strategy(backbone, image)
    assert torch.equal(found.pooled, frozen.pooled)
    assert torch.equal(found.patches, frozen.patches)
    (found.pooled.square().sum() + found.patches.square().sum()).backward()
    assert all(p.grad is not None and p.grad.any() for p in strategy.parameters())


@pytest.mark.parametrize("name", LIVE)
def test_a_layer_that_timm_bypasses_is_refused_with_the_remedy(name: str) -> None:
    with pytest.raises(ValueError, match=r"'qkv' of .* is never called.*\['proj', 'fc1', 'fc2'\]"):
        SSF().attach(family(name))


def test_a_patch_embedding_that_ends_in_no_layer_is_left_out() -> None:
    """That of vit_base_mci_224 is a stem of convolutions, and its `proj` does nothing."""
    strategy = SSF()
    with torch.device("meta"):
        strategy.attach(Backbone("vit_base_mci_224", weights="random"))
    assert {name for name, _ in strategy.outer_affines.named_children()} == {"norm"}


def test_the_counts_are_two_numbers_a_channel() -> None:
    """A block has 11 widths of channels; patch embedding and final norm have one each."""

    def count(backbone: Backbone | None = None, **options: Any) -> int:
        strategy = SSF(**options)
        strategy.attach(backbone or nano())
        return sum(parameter.numel() for parameter in strategy.parameters())

    assert count() == 2 * (6 * 11 + 2) * 128
    assert count(norms=False, outer=False) == 2 * 6 * 9 * 128
    assert count(sites=["fc1"], norms=False, outer=False, blocks=[3]) == 2 * 4 * 128
    with torch.device("meta"):
        vit_b = Backbone("vit_base_patch16_224", weights="random")
        assert count(vit_b) == 2 * (12 * 11 + 2) * 768 == 205_824  # 0.21 M in the paper's table 1


def test_less_is_kept_for_backward_than_by_the_published_computation(images: Tensor) -> None:
    """Beyond a gradient that passes through: D for each of qkv, proj, fc1 and fc2, of a token."""
    tokens = 3 * 65

    def kept(adapter: SSF) -> int:
        task = built(adapter)
        return kept_numbers(lambda: task.features(images).pooled, besides=list(task.parameters()))

    plain, leaves = nano(), {}
    for i in range(6):
        for name in PUBLISHED:
            path = f"blocks.{i}.{name}"
            width = len(plain.model.get_submodule(path).weight)
            leaves[path] = (torch.ones(width).requires_grad_(), torch.zeros(width).requires_grad_())
    as_published(plain, leaves)
    own = [*plain.parameters(), *(leaf for pair in leaves.values() for leaf in pair)]
    published = kept_numbers(lambda: plain(images).pooled, besides=own)
    mine = kept(SSF(outer=False))
    # The published code keeps the output of all six layers, 11 D; the first norm is the exception
    # here, as nothing before it asks for a gradient of the frozen one.
    assert published - mine > 6 * (11 - 4 - 0.2) * 128 * tokens


def test_two_that_share_a_norm_are_refused() -> None:
    backbone = nano()
    SSF(["fc1"], outer=False).attach(backbone)
    with pytest.raises(ValueError, match=r"'blocks.0.norm1' of vit_nano is already computed"):
        SSF(["fc2"], outer=False).attach(backbone)


def test_init_std_is_that_of_scale_and_shift() -> None:
    torch.manual_seed(0)
    strategy = SSF(init_std=0.02)
    strategy.attach(nano())
    scales = torch.cat([p.flatten() for n, p in strategy.named_parameters() if "scale" in n])
    shifts = torch.cat([p.flatten() for n, p in strategy.named_parameters() if "shift" in n])
    for drawn, mean in ((scales, 1), (shifts, 0)):
        assert drawn.mean().item() == pytest.approx(mean, abs=0.002)
        assert drawn.std().item() == pytest.approx(0.02, rel=0.05)


def test_affines_are_placed_by_block_and_layer() -> None:
    strategy = SSF()
    strategy.attach(nano())
    places = {place_of(name) for name, _ in strategy.trainable()}
    assert {("3", "norm1"), ("0", "qkv"), ("–", "patch_embed_proj"), ("–", "norm")} <= places


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": ["q", "v"]}, "SSF: site 'q' is only a part of the fused qkv.*Use 'qkv'"),
        ({"sites": []}, "sites is empty"),
        ({"sites": ["fc3"]}, "no site 'fc3'"),
        ({"blocks": [6]}, "expected numbers from 0 to 5"),
        ({"init_std": -0.1}, "SSF: init_std=-0.1, expected a number of 0 or more"),
        ({"init_std": float("nan")}, "SSF: init_std=nan"),
    ],
)
def test_a_wrong_setting_is_one_clear_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SSF(**options).attach(nano())
