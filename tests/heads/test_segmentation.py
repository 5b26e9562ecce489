"""Claims about all segmentation heads alike, and about each of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kora.backbone.vit import Level
from kora.heads import DPTSegmentation, LinearSegmentation, QuerySegmentation, SegmentationHead
from tests.support.factory import family, nano
from tests.support.heads import SEGMENTERS, features_for, made_segmenter

KINDS = list(SEGMENTERS)
#: Pixels of the logits along one side of a patch.
SIDES = {LinearSegmentation: 1, DPTSegmentation: 16, QuerySegmentation: 4}


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_reads_a_real_backbone_that_is_not_square(
    kind: type[SegmentationHead], images: Tensor
) -> None:
    backbone = nano(image_size=(32, 48))
    head = made_segmenter(kind, backbone).eval()
    backbone.levels = head.blocks(backbone.depth)
    logits = head(backbone(images))
    assert logits.shape == (len(images), 5, 4 * SIDES[kind], 6 * SIDES[kind])
    assert logits.std() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_does_not_change_another_ones_logits(kind: type[SegmentationHead]) -> None:
    backbone = nano()
    head = made_segmenter(kind, backbone).eval()
    features = features_for(head, backbone, images=3)
    alone = features._replace(
        levels=tuple(Level(*(part[1:2] for part in level)) for level in features.levels)
    )
    torch.testing.assert_close(head(features)[1:2], head(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_reaches_every_parameter(kind: type[SegmentationHead]) -> None:
    backbone = nano(image_size=(40, 56))
    head = made_segmenter(kind, backbone)
    weight = torch.randn(5, 1, 1, generator=torch.Generator().manual_seed(0))
    (head(features_for(head, backbone)) * weight).square().mean().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_is_close_to_full_precision(kind: type[SegmentationHead]) -> None:
    backbone = nano()
    head = made_segmenter(kind, backbone).eval()
    features = features_for(head, backbone)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(features)
        logits.float().mean().backward()
    full = head(features)
    torch.testing.assert_close(logits.float(), full, rtol=0.1, atol=0.1 * float(full.std()))
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", KINDS)
def test_build_comes_first_and_once(kind: type[SegmentationHead]) -> None:
    backbone = nano()
    head = kind(**SEGMENTERS[kind])
    with pytest.raises(AssertionError, match=r"build\(\) comes first"):
        head(features_for(head, backbone))
    head.build(backbone, 3)
    with pytest.raises(AssertionError, match="called once"):
        head.build(backbone, 3)


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (LinearSegmentation, {"levels": 2}, "levels=2, expected 1"),
        (LinearSegmentation, {"dropout": 1.0}, r"in \[0, 1\)"),
        (DPTSegmentation, {"features": 1}, "DPTSegmentation: features=1"),
        (DPTSegmentation, {"readout": "cls"}, "readout='cls', expected one of project"),
        (QuerySegmentation, {"width": 10, "heads": 4}, "a width that the heads divide"),
    ],
)
def test_impossible_arguments_are_refused(
    kind: type[SegmentationHead], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        kind(**options)


def test_the_linear_head_is_batch_norm_and_a_1x1_convolution() -> None:
    backbone = nano(image_size=(32, 48))
    head = made_segmenter(LinearSegmentation, backbone, dropout=0.0)
    assert isinstance(head, LinearSegmentation)
    features = features_for(head, backbone)
    reference = nn.Sequential(
        nn.BatchNorm2d(4 * backbone.width), nn.Conv2d(4 * backbone.width, 5, 1)
    )
    with torch.no_grad():
        reference[1].weight.copy_(head.project.weight[..., None, None])
        reference[1].bias.copy_(head.project.bias)
    image = torch.cat([level.patches for level in features.levels], -1).mT.unflatten(-1, (4, 6))
    torch.testing.assert_close(head(features), reference(image), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head.eval()(features), reference.eval()(image), rtol=1e-4, atol=1e-5)


def test_a_composed_vector_moves_the_queries_only_once_its_map_has_learnt() -> None:
    backbone = nano()
    head = made_segmenter(QuerySegmentation, backbone, composed=6)
    assert isinstance(head, QuerySegmentation)
    features = features_for(head, backbone)
    sent = features._replace(query=torch.randn(2, 6))
    assert torch.equal(head(sent), head(features))
    nn.init.normal_(head.from_composed.weight)
    assert not torch.equal(head(sent), head(features))


def test_dpt_refuses_a_backbone_without_cls_that_it_would_read() -> None:
    with pytest.raises(ValueError, match=r"siglip_224' has none.*init_args.readout: ignore"):
        made_segmenter(DPTSegmentation, family("narrow_vit_base_patch16_siglip_224"))
