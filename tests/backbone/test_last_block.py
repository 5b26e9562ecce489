"""Behind the last attention, a head on CLS is given the CLS token, and nothing else is computed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kora.adapters import (
    AdapterFusion,
    Bottleneck,
    KoRA,
    LinearProbe,
    LoRA,
    MultiLayerProbe,
    PaperForm,
    Strategy,
)
from kora.backbone.last_block import LastBlock
from kora.backbone.vit import Features
from kora.feature_cache.rules import head_reads
from kora.heads import LinearHead
from kora.tasks import ClassificationTask
from tests.support.adapters import gradients
from tests.support.counted import counted_step
from tests.support.factory import built, kick, nano
from tests.support.families import TINY, tiny
from tests.support.strategies import STRATEGIES, Entry

ON_CLS = ("tiny_vit", "tiny_deit3", "tiny_dinov2", "tiny_dinov2_registers", "tiny_clip")


@pytest.mark.parametrize("name", sorted(TINY))
def test_it_is_for_heads_on_cls_behind_blocks_that_are_known(name: str) -> None:
    task = built(LoRA(2, sites=["proj"]), backbone=tiny(name))
    assert (task.last_block is not None) == LastBlock.fits(task.backbone) == (name in ON_CLS)


def everywhere(task: ClassificationTask) -> ClassificationTask:
    """The same task with all tokens of the last block."""
    whole = copy.deepcopy(task)
    whole.last_block = None
    return whole


@pytest.mark.parametrize("name", ON_CLS)
@pytest.mark.parametrize("strategy", [LinearProbe(), LoRA(2), Bottleneck(2, position="parallel")])
def test_logits_and_gradients_are_those_of_all_tokens(
    strategy: Strategy, name: str, images: Tensor
) -> None:
    task = kick(built(copy.deepcopy(strategy), backbone=tiny(name)))
    assert task.last_block is not None
    torch.testing.assert_close(task(images), everywhere(task)(images), rtol=1e-5, atol=1e-5)
    _, mine = gradients(task, images)
    _, theirs = gradients(everywhere(task), images)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("key", sorted(STRATEGIES))
def test_of_every_strategy_the_logits_are_those_of_all_tokens(key: str, images: Tensor) -> None:
    entry: Entry = STRATEGIES[key]
    task = kick(built(entry(), backbone=tiny("tiny_vit"))).eval()
    # Those that read other tokens there themselves.
    reads_all = isinstance(task.adapter, KoRA | AdapterFusion | MultiLayerProbe)
    reads_all |= key == "VPT-shallow"
    if task.last_block is None:
        assert reads_all
    else:
        assert not reads_all
        torch.testing.assert_close(task(images), everywhere(task)(images), rtol=1e-5, atol=1e-5)


class MeanHead(LinearHead):
    """A head of somebody who knows nothing of all this."""

    def forward(self, features: Features) -> Tensor:
        return super().forward(features._replace(pooled=features.patches.mean(dim=1)))


class OwnHead(ClassificationTask):
    """Its head reads the patch tokens."""

    def build_head(self) -> nn.Module:
        super().build_head()
        return MeanHead(self.backbone, 7)


class OwnFeatures(ClassificationTask):
    """It takes the mean of the patch tokens to the head."""

    def features(self, images: Any) -> Features:
        features = super().features(images)
        return features._replace(pooled=features.patches.mean(dim=1))


@pytest.mark.parametrize("kind", [OwnHead, OwnFeatures])
def test_where_a_task_reads_patch_tokens_they_are_there(kind: Any, images: Tensor) -> None:
    task = kind(tiny("tiny_vit"), LoRA(2), num_classes=7)
    task.build()
    assert head_reads(task) == Features._fields
    assert task.last_block is None
    assert task(images).isfinite().all()


def test_one_whose_blocks_are_computed_again_in_backward_has_all_tokens(images: Tensor) -> None:
    task = kick(built(LoRA(2), backbone=tiny("tiny_vit")))
    _, expected = gradients(task, images)
    task.backbone.model.set_grad_checkpointing(True)
    _, found = gradients(task, images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_it_compiles_into_one_graph(images: Tensor) -> None:
    torch.compiler.reset()
    task = kick(built(LoRA(2), backbone=tiny("tiny_vit")))
    assert task.last_block is not None
    expected = task(images)
    task.compile(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(task(images), expected, rtol=1e-5, atol=1e-5)
    assert not task.last_block.active


def test_a_kora_that_sends_means_needs_every_token_and_one_of_cls_does_not() -> None:
    assert built(KoRA(PaperForm(2), 2)).last_block is None
    assert built(KoRA(PaperForm(2, pool="cls"), 2)).last_block is not None


def test_features_that_are_asked_for_outside_of_the_task_have_all_tokens(images: Tensor) -> None:
    task = built(LoRA(2))
    task(images)
    for features in (task.features(images), task.backbone(images)):
        assert features.patches.shape[1] == 64
    with pytest.raises(ValueError, match="uint8"):
        task(images.int())
    assert task.features(images).patches.shape[1] == 64  # also after an error in between


def test_three_quarters_of_the_last_blocks_products_are_saved(images: Tensor) -> None:
    """`vit_nano`: 65 tokens of width D = 128, 6 blocks; proj, fc1 and fc2 are 9 D^2 of 12 D^2."""
    task = built(LinearProbe(), backbone=nano())
    few, all_of_them = (
        counted_step(one, lambda one=one: one(images).sum())[0] for one in (task, everywhere(task))
    )
    tokens = len(images) * (65 - 1)
    assert all_of_them - few == pytest.approx(2 * tokens * 9 * 128**2 / 1e9, rel=1e-6)
