"""Claims about DoRA, against peft, and folded into the weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kora.adapters import SSF, DoRA, LoRA
from kora.adapters.dora import Direction
from kora.backbone.sites import ALL_SITES
from kora.backbone.vit import Backbone
from tests.support.adapters import kept_numbers
from tests.support.factory import FAMILIES, LIVE, built, family, labels_for, nano

LAYERS = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}


def trained(backbone: Backbone, **options: Any) -> DoRA:
    """DoRA with random B and lengths."""
    torch.manual_seed(4)
    strategy = DoRA(**options)
    strategy.attach(backbone)
    with torch.no_grad():
        for delta in strategy.deltas.values():
            delta.up_OR.normal_(std=0.2)
            delta.magnitude_O.mul_(1 + 0.3 * torch.randn_like(delta.magnitude_O))
    return strategy.eval()


def test_output_and_gradients_equal_those_of_peft(images: Tensor) -> None:
    peft = pytest.importorskip("peft")
    backbone, other = nano(), nano()
    strategy = trained(backbone, rank=4, alpha=0.5)
    config = peft.LoraConfig(r=4, lora_alpha=0.5 * 4, target_modules=list(LAYERS), use_dora=True)
    config.exclude_modules = ["patch_embed.proj"]
    wrapped = peft.get_peft_model(copy.deepcopy(other.model), config)
    other.model = wrapped.base_model.model
    pairs: list[tuple[Tensor, Tensor]] = []
    for i, block in enumerate(other.model.blocks):
        for name, path in LAYERS.items():
            layer, delta = block.get_submodule(path), strategy.deltas[f"b{i:02d}_{name}"]
            pairs += [
                (layer.lora_A["default"].weight, delta.down_RI),
                (layer.lora_B["default"].weight, delta.up_OR),
                (layer.lora_magnitude_vector["default"].weight, delta.magnitude_O),
            ]
    for theirs, mine in pairs:
        theirs.data.copy_(mine)
    found, expected = strategy(backbone, images), other(images)
    torch.testing.assert_close(found.patches, expected.patches, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found.pooled, nano()(images).pooled, atol=1e-2)
    for features in (found, expected):
        nn.functional.cross_entropy(features.pooled, labels_for(images)).backward()
    for theirs, mine in pairs:
        assert theirs.grad is not None
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-6)
    count = sum(parameter.numel() for parameter in wrapped.parameters() if parameter.requires_grad)
    assert sum(parameter.numel() for parameter in strategy.parameters()) == count


@pytest.mark.parametrize("sites", [ALL_SITES, ["q", "v"], ["k", "fc2"], ["v", "k", "q", "proj"]])
def test_folded_into_the_weights_it_gives_the_same_output(sites: Any, images: Tensor) -> None:
    backbone, plain = nano(), nano()
    strategy = trained(backbone, rank=3, alpha=0.6, sites=sites)
    plain.model.load_state_dict(strategy.merged(backbone))
    found, expected = strategy(backbone, images), plain(images)
    torch.testing.assert_close(found.pooled, expected.pooled, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.patches, expected.patches, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found.pooled, nano()(images).pooled, atol=1e-2)


def test_a_folded_row_has_the_length_that_was_trained_and_others_stay() -> None:
    backbone = nano()
    strategy = trained(backbone, sites=["q", "v"], blocks=[1])
    weight = strategy.merged(backbone)["blocks.1.attn.qkv.weight"]
    frozen = nano().model.blocks[1].attn.qkv.weight
    for name, first in (("q", 0), ("v", 256)):
        length = strategy.deltas[f"b01_{name}"].magnitude_O.abs()
        torch.testing.assert_close(weight[first : first + 128].norm(dim=1), length)
    assert torch.equal(weight[128:256], frozen[128:256])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_starts_at_its_frozen_features_and_every_length_trains(name: str) -> None:
    backbone, image = family(name), torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        frozen = backbone(image)
    strategy = DoRA(1, sites=LIVE.get(name, ALL_SITES))
    strategy.attach(backbone)
    found = strategy(backbone, image)
    assert torch.equal(found.pooled, frozen.pooled)
    assert torch.equal(found.patches, frozen.patches)
    (found.pooled.square().sum() + found.patches.square().sum()).backward()
    for delta in strategy.deltas.values():
        assert delta.magnitude_O.grad is not None
        assert delta.magnitude_O.grad.any()


def test_the_norm_is_that_of_the_corrected_rows_and_has_no_gradient() -> None:
    backbone = nano()
    strategy = trained(backbone, alpha=0.7, sites=["fc1"], blocks=[0])
    delta, weight = strategy.deltas["b00_fc1"], nano().model.blocks[0].mlp.fc1.weight
    assert isinstance(delta, Direction)
    expected = (weight + 0.7 * delta.up_OR @ delta.down_RI).norm(dim=1)
    torch.testing.assert_close(delta.norm(weight), expected)
    assert not delta.norm(weight).requires_grad


def test_a_row_of_zeros_trains_without_nan(images: Tensor) -> None:
    backbone = nano()
    backbone.model.blocks[0].mlp.fc1.weight.data[3] = 0
    strategy = DoRA(2, sites=["fc1"])
    strategy.attach(backbone)
    strategy(backbone, images).pooled.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in strategy.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_norm_is_that_of_float32(dtype: torch.dtype, images: Tensor) -> None:
    backbone = nano()
    backbone.model.blocks[0].mlp.fc1.weight.data[3] = 0
    strategy = trained(backbone, alpha=0.7, sites=["fc1"], blocks=[0]).to(dtype)
    delta, weight = (
        strategy.deltas["b00_fc1"],
        backbone.to(dtype).model.blocks[0].mlp.fc1.base.weight,
    )
    assert isinstance(delta, Direction)
    up_OR, down_RI = delta.up_OR.double(), delta.down_RI.double()
    expected = (weight.double() + 0.7 * up_OR @ down_RI).norm(dim=1)
    torch.testing.assert_close(delta.norm(weight).double(), expected, rtol=1e-5, atol=1e-6)
    torch.nn.init.zeros_(delta.up_OR)  # and a row of zeros stays finite
    assert torch.isfinite(strategy(backbone, images).pooled).all()


def test_a_site_has_the_numbers_of_lora_and_one_a_row() -> None:
    def count(strategy: LoRA) -> int:
        strategy.attach(nano())
        return sum(parameter.numel() for parameter in strategy.parameters())

    rows = 6 * (3 + 1 + 4 + 1) * 128
    assert count(DoRA(4)) == count(LoRA(4)) + rows
    assert count(DoRA(2, sites=["q", "fc2"], blocks=[0])) == 2 * (2 * 128 + 5 * 128) + 2 * 128


def test_inputs_and_two_outputs_of_a_block_are_kept_for_backward_beyond_lora(
    images: Tensor,
) -> None:
    """The inputs that LoRA computes again (D, D and 4 D) and the outputs of proj and fc2.

    No weight, folded or summed, is kept.
    """

    def kept(adapter: LoRA) -> int:
        task = built(adapter)
        return kept_numbers(lambda: task.features(images).pooled, besides=list(task.parameters()))

    vectors = 6 * 128 * (9 * 8 + 9 * 2)  # factors, scales, offsets, and factor * B
    assert kept(DoRA(2)) <= kept(LoRA(2)) + 6 * (6 + 2) * 128 * 3 * 65 + vectors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "DoRA: rank=0, expected 1 or more"),
        ({"alpha": 0.0}, "DoRA: alpha=0 multiplies the adapter away"),
        ({"dropout": 1.0}, r"DoRA: dropout=1.0, expected a probability in \[0, 1\)"),
        ({"rank": 129}, r"rank=129 at site 'qkv' \(128 to 384\) is larger"),
        ({"sites": ["head"]}, "keep_classifier"),
        ({"sites": ["qkv", "q"]}, "cover the same rows"),
        ({"blocks": [6]}, "expected numbers from 0 to 5"),
    ],
)
def test_a_wrong_setting_is_one_clear_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DoRA(**options).attach(nano())


def test_a_layer_that_another_strategy_computes_is_refused() -> None:
    backbone = nano()
    SSF().attach(backbone)
    with pytest.raises(ValueError, match="already computed by another strategy"):
        DoRA(sites=["q"]).attach(backbone)
