"""Claims about bottleneck adapters, against a reference of a few lines for every position."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor, nn

from kora.adapters import Bottleneck
from kora.backbone.vit import Backbone
from tests.support.blocks import tiny
from tests.support.factory import FAMILIES, built, family, kick, nano

POSITIONS = ["houlsby", "pfeiffer", "parallel", "post"]


def adapted(backbone: Backbone, position: str, **options: Any) -> Bottleneck:
    """Bottleneck adapters with random weights, biases and scales."""
    torch.manual_seed(4)
    strategy = Bottleneck(5, position, **options)
    strategy.attach(backbone)
    with torch.no_grad():
        for parameter in strategy.parameters():
            parameter.normal_(std=0.3)
    return strategy.eval()


def reference(adapter: nn.Module, x: Tensor, *, alpha: float, scale: str) -> Tensor:
    """Steitz and Roth 2024, section 3: s (W_up GELU(W_down x + b) + b')."""
    weights = dict(adapter.named_parameters())
    low = F.gelu(x @ weights["down.weight"].T + weights["down.bias"])
    return alpha * (low @ weights["up.weight"].T + weights["up.bias"]) * weights.get(scale, 1)


def attention(block: Any, x: Tensor, **extra: Any) -> Tensor:
    """What the attention branch adds, by the names that timm's three block files use."""
    if isinstance(block, ResPostBlock):
        return block.norm1(block.attn(x))
    y = block.attn(block.norm1(x), **extra)
    return block.ls1(y) if hasattr(block, "ls1") else y * _gamma(block.gamma_1)


def mlp(block: Any, x: Tensor) -> Tensor:
    if isinstance(block, ResPostBlock):
        return block.norm2(block.mlp(x))
    y = block.mlp(block.norm2(x))
    return block.ls2(y) if hasattr(block, "ls2") else y * _gamma(block.gamma_2)


def _gamma(gamma: Tensor | None) -> Tensor | float:
    return 1.0 if gamma is None else gamma


@pytest.mark.parametrize("scale", ["none", "layer", "channel"])
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("kind", ["pre_norm", "post_norm"])
def test_a_block_equals_the_reference(kind: str, position: str, scale: str) -> None:
    backbone = tiny(kind)
    strategy = adapted(backbone, position, scale=scale, alpha=0.7, activation="gelu")
    block, x = backbone.model.blocks[1], torch.randn(2, 5, 24)

    def delta(name: str, tokens: Tensor) -> Tensor:
        adapter = strategy.adapters[f"b01_{name}"]
        return reference(adapter, tokens, alpha=0.7, scale="scale")

    plain = tiny(kind).model.blocks[1]
    y_attn = attention(plain, x)
    if position == "houlsby":
        stream = x + y_attn + delta("attn", y_attn)
        y_mlp = mlp(plain, stream)
        expected = stream + y_mlp + delta("mlp", y_mlp)
    else:
        stream = x + y_attn
        y_mlp = mlp(plain, stream)
        expected = stream + y_mlp
        if position == "pfeiffer":
            expected = expected + delta("mlp", y_mlp)
        elif position == "parallel":
            expected = expected + delta("parallel", stream)
        else:
            expected = expected + delta("post", expected)
    torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(block(x), plain(x), atol=1e-4)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_every_place(name: str, position: str) -> None:
    """Against a backbone whose own modules are wrapped by hand, so that LayerScale counts."""
    backbone, plain = family(name), family(name)
    if (
        name != "narrow_vit_tiny_patch16_224"
    ):  # LayerScale and gammas of the families start near zero
        for model in (backbone.model, plain.model):
            for key, parameter in model.named_parameters():
                if "gamma" in key:
                    parameter.data.fill_(0.5)
    strategy = adapted(backbone, position, blocks=[1])
    images = torch.rand(2, 3, 40, 40)
    seen: dict[str, Tensor] = {}
    block = plain.model.blocks[1]

    def watched(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        extra = {k: v for k, v in kwargs.items() if v is not None}
        x = args[0]
        rest = {"shared_rel_pos_bias": None} if type(plain.model).__name__ == "Beit" else extra
        y_attn = attention(module, x, **rest)
        if position == "houlsby":
            y_attn = y_attn + strategy.adapters["b01_attn"](y_attn)
        stream = x + y_attn
        y_mlp = mlp(module, stream)
        name = {"houlsby": "mlp", "pfeiffer": "mlp"}.get(position, position)
        read = {"parallel": stream, "post": stream + y_mlp}.get(position, y_mlp)
        seen["out"] = stream + y_mlp + strategy.adapters[f"b01_{name}"](read)
        return seen["out"]

    block.register_forward_hook(watched, with_kwargs=True)
    found, expected = strategy(backbone, images).patches, plain(images).patches
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, family(name)(images).patches, atol=1e-3)


@pytest.mark.parametrize("scale", ["none", "layer", "channel"])
@pytest.mark.parametrize("position", POSITIONS)
def test_the_counts_are_those_of_the_formula(position: str, scale: str) -> None:
    depth, width, rank = 6, 128, 5
    backbone, strategy = nano(), Bottleneck(rank, position, scale=scale)
    strategy.attach(backbone)
    one = 2 * width * rank + rank + width + {"none": 0, "layer": 1, "channel": width}[scale]
    number = depth * (2 if position == "houlsby" else 1)
    assert sum(p.numel() for p in strategy.parameters()) == number * one


def test_adapter_plus_of_rank_16_has_the_published_size_on_vit_b() -> None:
    """About 0.31 M without the head (Steitz and Roth 2024): 12 (2 * 768 * 16 + 16 + 2 * 768)."""
    made = Bottleneck(16, "post", activation="gelu", scale="channel").make(768)
    assert 12 * sum(p.numel() for p in made.parameters()) == 313_536


def test_the_published_start_is_near_the_backbone_and_the_lora_start_is_equal(
    images: Tensor,
) -> None:
    expected = nano()(images).pooled
    for init, most in (("houlsby", 0.02), ("bert", 0.1), ("lora", 0.0)):
        torch.manual_seed(0)
        backbone, strategy = nano(), Bottleneck(8, "post", init=init)
        strategy.attach(backbone)
        distance = (strategy(backbone, images).pooled - expected).norm() / expected.norm()
        assert distance <= most
        assert (distance == 0) == (init == "lora")


def test_houlsby_start_is_cut_at_two_sigma_and_biases_are_zero() -> None:
    made = Bottleneck(64).make(256)
    for layer in (made.down, made.up):
        assert layer.weight.abs().max() <= 0.02
        # A normal distribution cut at two sigma keeps 0.88 of its deviation.
        assert layer.weight.std().item() == pytest.approx(0.0088, rel=0.03)
        assert not layer.bias.any()


def test_drop_path_leaves_out_whole_images_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    made = Bottleneck(4, drop_path=0.25, init="bert").make(16)
    tokens = torch.randn(1, 3, 16).expand(4000, 3, 16)
    whole = made.eval()(tokens)
    dropped = made.train()(tokens)
    out = (dropped == 0).flatten(1).all(1)
    torch.testing.assert_close(dropped[~out], whole[~out] / 0.75)
    assert out.float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_dropout_and_drop_path_run_in_training_only(images: Tensor) -> None:
    task = kick(built(Bottleneck(4, dropout=0.5, drop_path=0.5)))
    assert torch.equal(task.eval()(images), task.eval()(images))
    assert not torch.equal(task.train()(images), task.train()(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "Bottleneck: rank=0, expected 1 or more.*LinearProbe"),
        ({"rank": 129}, r"rank=129 is wider than the tokens \(128\).*expected 1 to 128"),
        ({"alpha": 0.0}, "Bottleneck: alpha=0 multiplies the adapter away"),
        ({"position": "pre"}, "position='pre', expected one of houlsby, pfeiffer, parallel, post"),
        ({"activation": "tanh"}, "activation='tanh', expected one of relu, gelu"),
        ({"scale": "token"}, "scale='token', expected one of none, layer, channel"),
        ({"init": "zero"}, "init='zero', expected one of houlsby, bert, lora"),
        ({"dropout": 1.0}, r"dropout=1.0, expected a probability in \[0, 1\)"),
        ({"drop_path": -0.1}, "drop_path=-0.1"),
        ({"blocks": [6]}, r"blocks=\[6\] of vit_nano: expected numbers from 0 to 5"),
        ({"blocks": []}, "at least one"),
    ],
)
def test_a_wrong_setting_is_one_clear_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Bottleneck(**options).attach(nano())


@pytest.mark.parametrize("kind", ["no_mlp", "unseen_mlp"])
@pytest.mark.parametrize("position", ["houlsby", "pfeiffer", "parallel"])
def test_a_branch_that_is_never_called_is_refused(kind: str, position: str) -> None:
    backbone = tiny(kind)
    with pytest.raises(ValueError, match=rf"Block 0 of vit_test_{kind} .*has no place"):
        Bottleneck(2, position).attach(backbone)
    Bottleneck(2, "post").attach(backbone)
