"""Claims about BitFit, against a thawed backbone and against peft."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kora.adapters import BitFit, DoRA
from kora.adapters.base import place_of
from tests.support.adapters import kept_numbers
from tests.support.factory import FAMILIES, built, family, kick, labels_for, nano


def count(adapter: BitFit) -> int:
    return sum(parameter.numel() for _, parameter in adapter.trainable())


def attached(**options: Any) -> BitFit:
    strategy = BitFit(**options)
    strategy.attach(nano())
    return strategy


def test_a_block_has_11_widths_of_biases() -> None:
    """qkv 3 D, proj D, fc1 4 D, fc2 D, two norms 2 D; outside: patch embedding and final norm."""
    assert count(attached(outer=False)) == 6 * 11 * 128
    assert count(attached(blocks=[1, 4], outer=False)) == 2 * 11 * 128
    assert count(attached()) == 6 * 11 * 128 + 2 * 128


@pytest.mark.parametrize("name", FAMILIES)
def test_every_bias_of_every_family_trains_and_nothing_else(name: str) -> None:
    task = built(BitFit(), backbone=family(name))
    before = {n: p.clone() for n, p in task.backbone.model.named_parameters()}
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    task(images).square().sum().backward()
    with torch.no_grad():
        for parameter in task.trainables().values():
            assert parameter.grad is not None
            parameter -= parameter.grad + 1  # the gradient of a key bias is zero
    moved = {n for n, p in task.backbone.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if n.endswith("bias")}
    assert all(p.grad is None for n, p in task.backbone.model.named_parameters() if n not in moved)


def test_gradients_equal_those_of_peft_with_all_biases(images: Tensor) -> None:
    peft = pytest.importorskip("peft")
    task, other = built(BitFit()), built(None)
    config = peft.LoraConfig(r=1, target_modules=["qkv"], bias="all")  # its B is zero
    other.backbone.model = peft.get_peft_model(copy.deepcopy(other.backbone.model), config).model
    for each in (task.double(), other.double()):
        each.adapter.needs_backbone_grad = True
        nn.functional.cross_entropy(each(images), labels_for(images)).backward()
    theirs = {
        name.replace(".base_layer", ""): parameter.grad
        for name, parameter in other.backbone.model.named_parameters()
        if parameter.requires_grad and "lora_" not in name
    }
    mine = dict(task.adapter.trainable())
    assert mine.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(mine[name].grad, gradient, rtol=1e-4, atol=1e-6)


def test_no_more_is_kept_than_by_a_gradient_that_only_passes_through(images: Tensor) -> None:
    """The inputs of linear layers, which DoRA and full fine-tuning keep, are not."""

    def kept(adapter: BitFit | DoRA) -> int:
        task = built(adapter)
        return kept_numbers(lambda: task.features(images).pooled, besides=list(task.parameters()))

    passing = built(None)
    first_norm = passing.backbone.model.blocks[0].norm1.bias.requires_grad_(True)
    passing.adapter.needs_backbone_grad = True
    least = kept_numbers(
        lambda: passing.features(images).pooled, besides=list(passing.parameters())
    )
    tokens = 3 * 65 * 128
    assert first_norm.requires_grad
    assert kept(BitFit(outer=False)) == least
    assert kept(DoRA(1)) > least + 6 * 5 * tokens


def test_the_hash_stays_that_of_the_frozen_weights() -> None:
    task = kick(built(BitFit()))
    assert task.backbone.sha256 == nano().sha256


def test_its_weights_need_no_merging(images: Tensor) -> None:
    task, plain = kick(built(BitFit())), nano()
    plain.model.load_state_dict(task.adapter.merged(task.backbone))
    assert torch.equal(plain(images).pooled, task.features(images).pooled)


def test_biases_are_placed_by_block_and_layer() -> None:
    assert place_of("blocks.3.attn.qkv.bias") == ("3", "qkv")
    assert place_of("blocks.0.norm1.bias") == ("0", "norm1")
    assert place_of("patch_embed.proj.bias") == ("–", "patch_embed")


def test_a_classifier_that_is_never_called_is_left_alone() -> None:
    strategy = BitFit()
    backbone = family("narrow_vit_tiny_patch16_224")
    backbone.model.reset_classifier(10)
    strategy.attach(backbone)
    assert not any(name.startswith("head") for name, _ in strategy.trainable())


def test_wrong_blocks_and_a_backbone_without_biases_are_refused() -> None:
    with pytest.raises(ValueError, match="expected numbers from 0 to 5"):
        attached(blocks=[6])
    backbone = nano()
    for module in backbone.model.blocks.modules():
        if getattr(module, "bias", None) is not None:
            module.bias = None
    with pytest.raises(ValueError, match=r"vit_nano has no bias in blocks \[0, 1.*LoRA"):
        BitFit(outer=False).attach(backbone)
