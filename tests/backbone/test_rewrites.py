"""Claims about layers that a strategy computes: the arithmetic, and who may share a layer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from kora.adapters import SSF, LoRA
from kora.backbone.rewrites import Rewritten, plain_state, rescaled, rewrite
from kora.backbone.sites import SiteLinear, find_sites
from tests.support.adapters import kept_numbers
from tests.support.factory import nano

WIDENS = nn.Linear(8, 24)
LAYERS = {
    "widens": WIDENS,
    "widens without bias": nn.Linear(8, 24, bias=False),
    "narrows": nn.Linear(24, 8),
    "square": nn.Linear(8, 8),
    "norm": nn.LayerNorm(8),
    "norm without bias": nn.LayerNorm(8, bias=False),
    "rms": nn.RMSNorm(8),
    "convolution": nn.Conv2d(3, 8, 4, stride=4),
}


def case(name: str) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A frozen layer with random weights, its input, and a scale and shift for its channels."""
    torch.manual_seed(0)
    layer = copy.deepcopy(LAYERS[name])
    for parameter in layer.parameters():
        nn.init.normal_(parameter).requires_grad_(False)
    shapes = {"convolution": (2, 3, 8, 8), "narrows": (2, 5, 24)}
    x = torch.randn(shapes.get(name, (2, 5, 8)), requires_grad=True)
    channels = len(layer.weight)
    scale_O, shift_O = torch.randn(2, channels).unbind()
    return layer, x, scale_O.requires_grad_(), shift_O.requires_grad_()


def plainly(layer: nn.Module, x: Tensor, scale_O: Tensor, shift_O: Tensor | None) -> Tensor:
    dims = (-1, 1, 1) if x.ndim == 4 else (-1,)
    scaled = layer(x) * scale_O.view(dims)
    return scaled if shift_O is None else scaled + shift_O.view(dims)


@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_output_and_gradients_are_those_of_the_plain_formula(name: str, shifted: bool) -> None:
    layer, x, scale_O, shift_O = case(name)
    leaves = [x, scale_O, shift_O] if shifted else [x, scale_O]
    mine = rescaled(layer, x, scale_O, shift_O if shifted else None)
    theirs = plainly(layer, x, scale_O, shift_O if shifted else None)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(mine)
    found = torch.autograd.grad((mine * weights).sum(), leaves)
    expected = torch.autograd.grad((theirs * weights).sum(), leaves)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_scale_one_and_shift_zero_are_the_layer_itself_to_the_bit(name: str) -> None:
    layer, x, scale_O, shift_O = case(name)
    same = rescaled(layer, x, torch.ones_like(scale_O), torch.zeros_like(shift_O))
    assert torch.equal(same, layer(x))


@pytest.mark.parametrize("name", LAYERS)
def test_under_autocast_the_type_is_that_of_the_layer_and_gradients_are_float32(name: str) -> None:
    layer, x, scale_O, shift_O = case(name)
    with torch.autocast("cpu", torch.bfloat16):
        mine, own = rescaled(layer, x, scale_O, shift_O), layer(x)
    assert mine.dtype == own.dtype
    mine.float().square().sum().backward()
    expected = torch.autograd.grad(
        plainly(layer, x, scale_O, shift_O).square().sum(), [x, scale_O, shift_O]
    )
    for leaf, gradient in zip([x, scale_O, shift_O], expected, strict=True):
        assert leaf.grad is not None
        assert leaf.grad.dtype == torch.float32
        size = gradient.abs().max().item()
        torch.testing.assert_close(leaf.grad, gradient, rtol=0.05, atol=0.02 * size)


def test_a_layer_that_widens_keeps_its_input_and_a_norm_keeps_nothing_more() -> None:
    layer, x, scale_O, shift_O = case("widens")
    own = [*layer.parameters(), scale_O, shift_O]
    kept = kept_numbers(lambda: rescaled(layer, x * 1, scale_O, shift_O), besides=own)
    assert kept == x.numel()
    layer, x, scale_O, shift_O = case("norm")
    frozen = kept_numbers(lambda: layer(x * 1), besides=list(layer.parameters()))
    scaled = kept_numbers(
        lambda: rescaled(layer, x * 1, scale_O, shift_O), besides=[*layer.parameters(), scale_O]
    )
    assert scaled - frozen == 2 * len(scale_O)  # its own weight and bias, scaled


def test_a_layer_without_input_gradient_still_trains_its_scale() -> None:
    layer, x, scale_O, shift_O = case("widens")
    rescaled(layer, x.detach(), scale_O, shift_O).sum().backward()
    assert x.grad is None
    assert scale_O.grad is not None
    torch.testing.assert_close(scale_O.grad, layer(x).sum((0, 1)), rtol=1e-4, atol=1e-5)


def test_linear_layers_stay_sites_and_others_are_wrapped_without_a_weight() -> None:
    backbone = nano()
    for path in ("blocks.0.attn.qkv", "blocks.0.norm1"):
        rewrite(backbone, path, lambda layer, x: layer(x) * 2)
    block = backbone.model.blocks[0]
    assert isinstance(block.attn.qkv, SiteLinear)
    assert isinstance(block.norm1, Rewritten)
    assert not hasattr(block.norm1, "weight")
    assert [site.path for site in find_sites(backbone, ["qkv"], blocks=[0])] == [
        "blocks.0.attn.qkv"
    ]


def test_names_and_hash_of_the_weights_stay_those_of_timm() -> None:
    backbone, plain = nano(), nano()
    rewrite(backbone, "blocks.0.norm1", lambda layer, x: layer(x))
    assert backbone.sha256 == plain.sha256
    assert plain_state(backbone).keys() == plain.model.state_dict().keys()


def test_a_layer_computed_by_two_strategies_is_refused() -> None:
    backbone = nano()
    SSF(["fc1"], norms=False, outer=False).attach(backbone)
    with pytest.raises(ValueError, match=r"'blocks.0.mlp.fc1' of vit_nano is already computed"):
        SSF(["fc1"], norms=False, outer=False).attach(backbone)


@pytest.mark.parametrize(("site", "first"), [("qkv", 0), ("q", 0), ("v", 256)])
def test_a_correction_may_share_a_layer_with_a_rewrite(
    site: str, first: int, images: Tensor
) -> None:
    """LoRA adds to what SSF computes."""
    backbone, reference = nano(), nano()
    scale, low = SSF(["qkv"], blocks=[2], norms=False, outer=False), LoRA(2, sites=[site])
    scale.attach(backbone)
    low.attach(backbone)
    delta = low.deltas[f"b02_{site}"]
    with torch.no_grad():
        delta.up_OR.normal_(std=0.1)
        for parameter in scale.parameters():
            parameter.normal_()
    reference.model.load_state_dict(scale.merged(backbone))
    weight = reference.model.blocks[2].attn.qkv.weight.data
    weight[first : first + len(delta.up_OR)] += (delta.up_OR @ delta.down_RI).detach()
    torch.testing.assert_close(
        backbone(images).pooled, reference(images).pooled, rtol=1e-4, atol=1e-4
    )
