"""Claims about LoRA, against merged weights and against peft."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from kora.adapters import LoRA
from kora.backbone.vit import Backbone
from tests.support.factory import built, kick, nano

LAYERS = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}


def adapted(backbone: Backbone, **options: Any) -> LoRA:
    """LoRA with random A and B."""
    torch.manual_seed(4)
    strategy = LoRA(**options)
    strategy.attach(backbone)
    with torch.no_grad():
        for delta in strategy.deltas.values():
            delta.up_OR.normal_(std=0.2)
    return strategy.eval()


def test_output_equals_the_backbone_before_the_first_step(images: Tensor) -> None:
    backbone = nano()
    expected = backbone(images)
    strategy = LoRA(4)
    strategy.attach(backbone)
    found = strategy(backbone, images)
    assert torch.equal(found.pooled, expected.pooled)
    assert torch.equal(found.patches, expected.patches)


@pytest.mark.parametrize("sites", [["q", "v", "fc1"], ["qkv", "proj"]])
def test_folded_into_the_weights_it_gives_the_same_output(sites: list[str], images: Tensor) -> None:
    backbone, plain = nano(), nano()
    strategy = adapted(backbone, rank=3, alpha=0.6, sites=sites, blocks=[1, 4])
    plain.model.load_state_dict(strategy.merged(backbone))
    torch.testing.assert_close(
        strategy(backbone, images).patches, plain(images).patches, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("sites", [["qkv", "proj", "fc1", "fc2"], ["fc1"], ["proj", "fc2"]])
def test_it_equals_the_backbone_with_merged_weights(sites: list[str], images: Tensor) -> None:
    backbone, merged = nano(), nano()
    strategy = adapted(backbone, rank=3, alpha=0.6, sites=sites)
    for i, block in enumerate(merged.model.blocks):
        for name in sites:
            delta = strategy.deltas[f"b{i:02d}_{name}"]
            block.get_submodule(LAYERS[name]).weight.data += 0.6 * delta.up_OR @ delta.down_RI
    found, expected = strategy(backbone, images), merged(images)
    torch.testing.assert_close(found.pooled, expected.pooled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.patches, expected.patches, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found.pooled, nano()(images).pooled, atol=1e-2)


def test_it_equals_peft_with_lora_alpha_of_alpha_times_rank(images: Tensor) -> None:
    peft = pytest.importorskip("peft")
    backbone, other = nano(), nano()
    strategy = adapted(backbone, rank=4, alpha=0.5)
    config = peft.LoraConfig(r=4, lora_alpha=0.5 * 4, target_modules=["qkv", "proj", "fc1", "fc2"])
    # `proj` also names the convolution of the patch embedding, which is no site.
    config.exclude_modules = ["patch_embed.proj"]
    wrapped = peft.get_peft_model(copy.deepcopy(other.model), config)
    inner = wrapped.base_model.model
    for i, block in enumerate(inner.blocks):
        for name, path in LAYERS.items():
            layer = block.get_submodule(path)
            delta = strategy.deltas[f"b{i:02d}_{name}"]
            layer.lora_A["default"].weight.data.copy_(delta.down_RI)
            layer.lora_B["default"].weight.data.copy_(delta.up_OR)
    other.model = inner
    torch.testing.assert_close(
        strategy(backbone, images).pooled, other(images).pooled, rtol=1e-5, atol=1e-5
    )
    ours = sum(p.numel() for p in strategy.parameters())
    theirs = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    assert ours == theirs


def test_gradients_equal_those_of_merged_weights(images: Tensor) -> None:
    """dL/dB = alpha dL/dW A^T and dL/dA = alpha B^T dL/dW: the chain rule through W + alpha B A."""
    backbone, merged = nano(), nano()
    strategy = adapted(backbone, rank=3, alpha=0.6, sites=["v"], blocks=[2])
    delta = strategy.deltas["b02_v"]
    weight = merged.model.blocks[2].attn.qkv.weight
    weight.data[256:] += 0.6 * (delta.up_OR @ delta.down_RI).detach()
    weight.requires_grad_(True)
    strategy(backbone, images).pooled.square().sum().backward()
    merged(images).pooled.square().sum().backward()
    assert weight.grad is not None
    grad_OI = weight.grad[256:]
    close = {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(delta.up_OR.grad, 0.6 * grad_OI @ delta.down_RI.T, **close)
    torch.testing.assert_close(delta.down_RI.grad, 0.6 * delta.up_OR.T @ grad_OI, **close)


def test_allow_dead_sites_accepts_what_is_refused_without_it() -> None:
    def attach(**options: Any) -> int:
        backbone = Backbone(
            "vit_tiny_patch16_224", weights="random", image_size=32, keep_classifier=True
        )
        strategy = LoRA(2, sites=["head"], **options)
        strategy.attach(backbone)
        return sum(p.numel() for p in strategy.parameters())

    with pytest.raises(ValueError, match="never called"):
        attach()
    assert attach(allow_dead_sites=True) == 2 * (192 + 1000)


def test_dropout_runs_in_training_only(images: Tensor) -> None:
    task = kick(built(LoRA(4, dropout=0.5)))
    assert torch.equal(task.eval()(images), task.eval()(images))
    assert not torch.equal(task.train()(images), task.train()(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "LoRA: rank=0, expected 1 or more.*LinearProbe"),
        ({"rank": -3}, "LoRA: rank=-3, expected 1 or more"),
        ({"alpha": 0.0}, "LoRA: alpha=0 multiplies the adapter away"),
        ({"dropout": 1.0}, r"LoRA: dropout=1.0, expected a probability in \[0, 1\)"),
        ({"dropout": -0.1}, "LoRA: dropout=-0.1"),
        ({"rank": 129}, r"rank=129 at site 'qkv' \(128 to 384\) is larger.*expected 1 to 128"),
        ({"sites": ["qk"]}, r"no site 'qk'.*Did you mean"),
        ({"sites": []}, "sites is empty"),
        ({"blocks": [12]}, "expected numbers from 0 to 5"),
    ],
)
def test_a_wrong_setting_is_one_clear_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoRA(**options).attach(nano())
