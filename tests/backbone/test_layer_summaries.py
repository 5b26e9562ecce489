"""What a head reads of several layers, against the same numbers taken layer by layer."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kora.adapters import (
    BitFit,
    Bottleneck,
    KoRA,
    LinearProbe,
    LoRA,
    MultiLayerProbe,
    PaperForm,
    Strategy,
)
from kora.backbone.sites import SiteLinear
from kora.backbone.vit import Backbone
from kora.heads import LayerSummaries, LinearDepth
from kora.tasks import ClassificationTask, DepthTask
from kora.tasks.merging import merged
from tests.support.adapters import gradients
from tests.support.factory import built, kick, nano
from tests.support.families import tiny

BOTH = {"cls_blocks": [-2, -1], "mean_blocks": [-2, -1]}


def read(backbone: Backbone, images: Tensor, **options: object) -> Tensor:
    LayerSummaries(**options).install(backbone)
    layers = backbone(images).layers
    assert layers is not None
    return layers


def tokens(backbone: Backbone, images: Tensor, path: str, *, entering: bool) -> Tensor:
    """What enters or leaves a module of timm's model."""
    kept: list[Tensor] = []
    module = backbone.model.get_submodule(path)
    if entering:
        hook = module.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    else:
        hook = module.register_forward_hook(lambda _, __, output: kept.append(output))
    backbone(images)
    hook.remove()
    return kept[0]


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_dinov2_registers", "tiny_clip"])
def test_proj_is_read_as_normalised_cls_tokens_and_means_over_patches(
    name: str, images: Tensor
) -> None:
    backbone = tiny(name)
    layers = read(backbone, images, layer="proj", cls_blocks=[1], mean_blocks=[0])
    prefix = backbone.num_prefix_tokens
    last = tokens(backbone, images, "blocks.1.attn.proj", entering=True)[:, 0]
    first = tokens(backbone, images, "blocks.0.attn.proj", entering=True)[:, prefix:].mean(dim=1)
    expected = torch.cat([F.layer_norm(x, x.shape[-1:]) for x in (last, first)], dim=1)
    torch.testing.assert_close(layers, expected)


def test_blocks_are_read_as_dinov2_evaluates(images: Tensor) -> None:
    """CLS and mean of tokens behind the last norm: what timm calls intermediates with a norm."""
    backbone = tiny("tiny_dinov2")
    layers = read(backbone, images, layer="block", cls_blocks=[0, 1], mean_blocks=[1])
    found = backbone.model.forward_intermediates(
        backbone.preprocess(images), indices=[0, 1], norm=True, return_prefix_tokens=True,
        output_fmt="NLC", intermediates_only=True,
    )  # fmt: skip
    expected = torch.cat([found[0][1][:, 0], found[1][1][:, 0], found[1][0].mean(dim=1)], dim=1)
    torch.testing.assert_close(layers, expected)


def test_what_is_read_of_a_strategy_is_what_it_has_changed(images: Tensor) -> None:
    task = kick(built(LoRA(2), head_layers=LayerSummaries(**BOTH)), scale=0.5)
    frozen = built(LinearProbe(), head_layers=LayerSummaries(**BOTH))
    mine, theirs = task.features(images).layers, frozen.features(images).layers
    assert mine is not None
    assert theirs is not None
    assert mine.shape == theirs.shape == (len(images), 4 * 128)
    assert not torch.allclose(mine, theirs, atol=1e-2)


@pytest.mark.parametrize(
    "strategy",
    [
        LinearProbe(),
        LoRA(2),
        BitFit(),
        Bottleneck(2),
        KoRA(PaperForm(2), 4),
        KoRA(PaperForm(2, inject=False), 4),
    ],
    ids=lambda strategy: strategy.label,
)
def test_every_strategy_takes_the_head_and_starts_at_the_same_logits(
    strategy: Strategy, images: Tensor
) -> None:
    task = built(copy.deepcopy(strategy), head_layers=LayerSummaries(**BOTH))
    torch.testing.assert_close(task(images), built(strategy)(images))
    assert task.label == f"{strategy.label}-layers"
    weight = dict(task.trainables())["head.linear.weight"]
    extra = task.adapter.extra_channels
    assert weight.shape[1] == 128 + (0 if extra is None else extra.width) + 4 * 128
    _, found = gradients(task, images)
    assert found["head.linear.weight"][:, -4 * 128 :].abs().sum(dim=0).all()


def test_gradients_reach_early_layers_through_what_is_read_of_them(images: Tensor) -> None:
    task = built(LoRA(2), head_layers=LayerSummaries(mean_blocks=[2]), head_init="zero")
    with torch.no_grad():  # the head reads block 2 alone
        task.head.linear.weight[:, 128:] = torch.randn(7, 128)
    _, found = gradients(task, images)
    alive = {name for name, gradient in found.items() if gradient.any()}
    assert any("b01_" in name for name in alive)
    assert not any("b04_" in name for name in alive)


def test_with_checkpointing_gradients_are_the_same(images: Tensor) -> None:
    def found(checkpointing: bool) -> dict[str, Tensor]:
        task = kick(
            built(
                LoRA(2),
                backbone=nano(gradient_checkpointing=checkpointing),
                head_layers=LayerSummaries(**BOTH),
            )
        )
        return gradients(task.train(), images)[1]

    torch.testing.assert_close(found(True), found(False))


def test_merged_layers_are_read_as_the_wrapped_ones_were(images: Tensor) -> None:
    task = kick(built(LoRA(2), head_layers=LayerSummaries(**BOTH))).eval()
    with torch.inference_mode():
        expected = task(images)
        with merged(task.backbone, task.adapter) as folded:
            assert folded.layers
            torch.testing.assert_close(task(images), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(task(images), expected)
    assert isinstance(task.backbone.model.blocks[0].attn.proj, SiteLinear)


def test_tokens_of_the_last_block_are_left_out_where_no_mean_needs_them(images: Tensor) -> None:
    lean = built(LoRA(2), head_layers=LayerSummaries(cls_blocks=[-1], mean_blocks=[-2]))
    assert lean.last_block is not None
    whole = copy.deepcopy(lean)
    whole.last_block = None
    torch.testing.assert_close(kick(lean)(images), kick(whole)(images), rtol=1e-5, atol=1e-5)
    assert built(LoRA(2), head_layers=LayerSummaries(mean_blocks=[-1])).last_block is None


def test_the_probe_of_several_layers_is_the_linear_probe_with_that_head(images: Tensor) -> None:
    blocks = [-6, -5, -4, -3, -2, -1]
    layers = LayerSummaries(cls_blocks=blocks, mean_blocks=blocks)
    probe, other = built(MultiLayerProbe()), built(LinearProbe(), head_layers=layers)
    for one in (probe, other):
        with torch.no_grad():
            one.head.linear.weight.fill_(0.01)
    torch.testing.assert_close(probe(images), other(images))
    assert (probe.label, other.label) == ("MultiLayerProbe", "LinearProbe-layers")


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({}, "cls_blocks and mean_blocks are empty"),
        ({"layer": "fc1", "mean_blocks": [0]}, "layer='fc1', expected one of proj, block"),
        ({"mean_blocks": [2]}, r"blocks=\[2\] of tiny_siglip: expected numbers from 0 to 1"),
        ({"cls_blocks": [0]}, "tiny_siglip has none. Use mean_blocks"),
    ],
)
def test_what_cannot_be_read_is_refused(options: dict[str, object], refused: str) -> None:
    with pytest.raises(ValueError, match=refused):
        LayerSummaries(**options).install(tiny("tiny_siglip"))


def test_layers_are_named_once() -> None:
    with pytest.raises(ValueError, match="MultiLayerProbe names what the head reads itself"):
        ClassificationTask(nano(), MultiLayerProbe(), head_layers=LayerSummaries(**BOTH))


def test_depth_has_heads_of_several_levels_and_takes_no_such_probe() -> None:
    task = DepthTask(nano(), MultiLayerProbe(), head=LinearDepth())
    with pytest.raises(ValueError, match="MultiLayerProbe is for classifiers: for depth, use"):
        task.build()
