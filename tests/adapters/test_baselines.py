"""Claims about the two ends of the scale."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.adapters import FullFineTune, LinearProbe, Strategy
from kora.adapters.base import place_of
from tests.support.factory import built, family, kick, labels_for, nano


def test_a_linear_probe_is_a_linear_layer_on_frozen_features(images: Tensor) -> None:
    task = built(LinearProbe())
    assert list(task.trainables()) == ["head.linear.weight", "head.linear.bias"]
    expected = task.head.linear(nano()(images).pooled)
    assert torch.equal(task.head(task.features(images)), expected)
    torch.testing.assert_close(task(images), expected)


def test_no_gradient_and_no_memory_is_spent_on_the_backbone_of_a_linear_probe(
    images: Tensor,
) -> None:
    task = built(LinearProbe())
    assert not task.features(images).pooled.requires_grad
    assert task(images).requires_grad


def test_no_adapter_is_a_linear_probe() -> None:
    assert isinstance(built(None).adapter, LinearProbe)


def test_full_fine_tuning_trains_every_weight_of_the_backbone(images: Tensor) -> None:
    task = built(FullFineTune())
    names = {f"adapter.{name}" for name, _ in task.backbone.model.named_parameters()}
    assert names <= task.trainables().keys()
    F.cross_entropy(task(images), labels_for(images)).backward()
    assert [n for n, p in task.trainables().items() if p.grad is None] == []


def test_full_fine_tuning_equals_plain_timm(images: Tensor) -> None:
    """One step of SGD on the model in its wrapping and on the bare model, with the same numbers."""
    task, plain = built(FullFineTune()), nano()
    head = nn.Linear(128, 7)
    head.load_state_dict(task.head.linear.state_dict())
    plain.model.requires_grad_(True)
    for forward, parameters in (
        (task, list(task.trainables().values())),
        (lambda x: head(plain(x).pooled), [*plain.model.parameters(), *head.parameters()]),
    ):
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        F.cross_entropy(forward(images), labels_for(images)).backward()
        optimizer.step()
    for mine, theirs in zip(
        task.backbone.model.parameters(), plain.model.parameters(), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_the_thawed_backbone_follows_train_and_eval() -> None:
    task = built(FullFineTune())
    assert task.train().backbone.model.training
    assert not task.eval().backbone.model.training


def test_a_frozen_full_fine_tune_trains_the_head_only_and_stays_in_eval_mode() -> None:
    task = built(FullFineTune(), adapter_trainable=False).train()
    assert list(task.trainables()) == ["head.linear.weight", "head.linear.bias"]
    assert not task.backbone.model.training


@pytest.mark.parametrize("kind", [LinearProbe, FullFineTune])
def test_exported_weights_give_equal_features_in_bare_timm(
    kind: type[Strategy], images: Tensor
) -> None:
    task, plain = kick(built(kind())), nano()
    bare = timm.create_model("vit_nano", num_classes=0)
    bare.load_state_dict(task.adapter.merged(task.backbone))
    found = bare.eval().forward_features(plain.preprocess(images))
    expected = task.features(images)
    assert torch.equal(found, torch.cat((expected.prefix, expected.patches), dim=1))
    moved = not torch.equal(expected.pooled, plain(images).pooled)
    assert moved == (kind is FullFineTune)


def test_the_hash_names_the_weights_before_training(images: Tensor) -> None:
    task = built(FullFineTune())
    with torch.no_grad():
        task.backbone.model.cls_token += 1
    assert task.backbone.sha256 == nano().sha256


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("blocks.3.attn.qkv.weight", ("3", "qkv")),
        ("blocks.11.mlp.fc2.bias", ("11", "fc2")),
        ("blocks.0.norm1.weight", ("0", "norm1")),
        ("cls_token", ("–", "cls_token")),
        ("patch_embed.proj.weight", ("–", "patch_embed")),
        ("norm.bias", ("–", "norm")),
    ],
)
def test_each_weight_has_its_cell_in_the_table(name: str, cell: tuple[str, str]) -> None:
    assert place_of(name) == cell


@pytest.mark.parametrize(
    "name", ["narrow_vit_small_patch16_dinov3", "narrow_beit_base_patch16_224"]
)
def test_other_families_are_fine_tuned_too(name: str, images: Tensor) -> None:
    task = built(FullFineTune(), backbone=family(name))
    F.cross_entropy(task(images), labels_for(images)).backward()
    assert [n for n, p in task.trainables().items() if p.grad is None] == []
