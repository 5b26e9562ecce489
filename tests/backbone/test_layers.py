"""Claims about the vectors that are read from every layer: timm's own tokens, and no other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kora.adapters import VPT, Bottleneck, KoRA, LinearProbe, LoRA, PaperForm, Strategy
from kora.backbone.layers import LayerReader, layer_names
from kora.heads.depth import LinearDepth
from kora.tasks import DepthTask
from tests.support.factory import built, kick
from tests.support.families import TINY, tiny

SIDE = KoRA(PaperForm(2, inject=False), 4)


def adapted(strategy: Strategy) -> tuple[LayerReader, LayerReader]:
    """Readers of the means of an adapted `tiny_vit`, away from its start, and of the frozen one."""
    task = kick(built(strategy, backbone=tiny("tiny_vit")), scale=0.2).eval()
    return (
        LayerReader(task.backbone, "mean", task.features),
        LayerReader(tiny("tiny_vit"), "mean"),
    )


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("kind", ["cls", "mean"])
def test_blocks_are_those_of_timms_own_intermediates(
    family: str, kind: str, images: Tensor
) -> None:
    backbone = tiny(family)
    if kind == "cls" and not backbone.has_cls:
        with pytest.raises(ValueError, match=r"has none\. Use --features mean"):
            LayerReader(backbone, "cls")
        return
    found = LayerReader(backbone, kind)(images)
    prefix = backbone.num_prefix_tokens
    with torch.no_grad():
        tokens, raw = backbone.model.forward_intermediates(
            backbone.preprocess(images), return_prefix_tokens=prefix > 0, output_fmt="NLC"
        )
        pooled = backbone.model.forward_head(tokens, pre_logits=True)
    for block, item in enumerate(raw):
        patches, first = item if isinstance(item, tuple) else (item, None)
        expected = patches.mean(1) if kind == "mean" else first[:, 0]
        np.testing.assert_allclose(found[1 + block], expected.double().numpy(), rtol=1e-6)
    np.testing.assert_array_equal(found[-1], pooled.double().numpy())
    assert len(found) == len(layer_names(backbone)) == backbone.depth + 2
    assert all(part.dtype == np.float64 and len(part) == 3 for part in found)


def test_the_embedding_is_what_enters_the_first_block(images: Tensor) -> None:
    backbone = tiny("tiny_deit3")  # CLS without a position
    embedding = LayerReader(backbone, "mean")(images)[0]
    with torch.no_grad():
        patches = backbone.model.patch_embed(backbone.preprocess(images))
        expected = (patches + backbone.model.pos_embed).mean(1)
    np.testing.assert_allclose(embedding, expected.double().numpy(), rtol=1e-6)
    constant = LayerReader(backbone, "cls")(images)[0]
    np.testing.assert_array_equal(constant, np.repeat(constant[:1], 3, axis=0))


@pytest.mark.parametrize("deep", [True, False])
def test_prompts_are_no_patches(deep: bool, images: Tensor) -> None:
    task = kick(built(VPT(3, deep=deep), backbone=tiny("tiny_vit"))).eval()
    reader = LayerReader(task.backbone, "mean", task.features)
    seen: list[Tensor] = []
    task.backbone.model.blocks[0].register_forward_hook(lambda *call: seen.append(call[2]))
    found = reader(images)
    assert seen[0].shape[1] == 1 + 4 + 3 * (not deep)  # CLS, patches, and shallow prompts stay
    np.testing.assert_allclose(found[1], seen[0][:, 1:5].mean(1).double().numpy(), rtol=1e-6)
    np.testing.assert_array_equal(found[0], LayerReader(tiny("tiny_vit"), "mean")(images)[0])


def test_an_adapter_changes_blocks_from_where_it_sits(images: Tensor) -> None:
    for strategy in (LoRA(2, blocks=[1]), Bottleneck(2, position="post", blocks=[1])):
        reader, frozen = adapted(strategy)
        same = [np.array_equal(*pair) for pair in zip(reader(images), frozen(images), strict=True)]
        assert same == [True, True, False, False], strategy.label


def test_a_side_network_changes_the_final_feature_alone(images: Tensor) -> None:
    reader, frozen = adapted(SIDE)
    same = [np.array_equal(*pair) for pair in zip(reader(images), frozen(images), strict=True)]
    assert same == [True, True, True, False]


@pytest.mark.parametrize("kind", ["cls", "mean"])
def test_the_final_feature_of_depth_is_the_last_level_that_its_head_reads(
    kind: str, images: Tensor
) -> None:
    task = DepthTask(tiny("tiny_vit"), LinearProbe(), head=LinearDepth())
    task.build()
    task.eval()
    found = LayerReader(task.backbone, kind, task.features)(images)
    with torch.no_grad():
        (level,) = task.features(images).levels
    expected = level.patches.mean(1) if kind == "mean" else level.prefix[:, 0]
    np.testing.assert_allclose(found[-1], expected.double().numpy(), rtol=1e-6)


def test_nothing_stays_hooked_in(images: Tensor) -> None:
    backbone = tiny("tiny_vit")
    LayerReader(backbone, "mean")(images)
    blocks = backbone.model.blocks
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in blocks)
