"""Claims about all depth heads alike."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kora.backbone.vit import Level
from kora.heads import DepthHead, DPTDepth, LinearDepth
from tests.support.factory import family, nano
from tests.support.heads import HEADS, SMALL, features_for, made


@pytest.mark.parametrize("kind", HEADS)
def test_the_head_reads_a_real_backbone(kind: type[DepthHead], images: Tensor) -> None:
    backbone = nano(image_size=(32, 48))
    head = made(kind, backbone)
    backbone.levels = head.blocks(backbone.depth)
    depth = head(backbone(images))
    assert depth.shape[0] == len(images)
    assert depth.shape[1] / depth.shape[2] == pytest.approx(4 / 6)
    assert depth.std() > 0


@pytest.mark.parametrize("kind", HEADS)
def test_registers_are_not_taken_for_cls(kind: type[DepthHead]) -> None:
    backbone = family("narrow_vit_small_patch14_reg4_dinov2")
    head = made(kind, backbone)
    features = features_for(head, backbone)

    def depth_with(prefix_at: Callable[[Tensor], Tensor]) -> Tensor:
        levels = tuple(Level(patches, prefix_at(prefix)) for patches, prefix in features.levels)
        return head(features._replace(levels=levels))

    depth = head(features)
    registers_moved = depth_with(lambda prefix: torch.cat([prefix[:, :1], prefix[:, 1:] + 1], 1))
    assert torch.equal(registers_moved, depth)
    assert not torch.equal(depth_with(lambda prefix: prefix.flip(1)), depth)


@pytest.mark.parametrize("options", [{}, {"min_depth_m": 0.7, "max_depth_m": 3.3}])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4, 1e30])
@pytest.mark.parametrize("kind", HEADS)
def test_depth_stays_in_its_range(
    kind: type[DepthHead], scale: float, options: dict[str, float]
) -> None:
    backbone = nano()
    head = made(kind, backbone, **options)
    depth = head(features_for(head, backbone, scale=scale))
    assert depth.dtype == torch.float32
    assert depth.min() >= head.min_depth_m  # false of NaN
    assert depth.max() <= head.max_depth_m


@pytest.mark.parametrize("kind", HEADS)
def test_an_overflow_of_half_precision_gives_no_nan(kind: type[DepthHead]) -> None:
    backbone = nano()
    head = made(kind, backbone, **({} if kind is LinearDepth else {"readout": "ignore"}))
    features = features_for(head, backbone)
    with torch.no_grad():
        last = list(head.parameters())[-1]  # a bias
        last.copy_(torch.where(torch.arange(len(last)) % 2 == 0, torch.inf, -torch.inf))
    depth = head(features)
    assert depth.min() >= head.min_depth_m
    assert depth.max() <= head.max_depth_m


@pytest.mark.parametrize("kind", HEADS)
def test_the_gradient_reaches_every_parameter(kind: type[DepthHead]) -> None:
    backbone = nano(image_size=(40, 56))
    options = {"levels": 4} if kind is LinearDepth else {}
    head = made(kind, backbone, **options)
    head(features_for(head, backbone)).square().mean().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", HEADS)
def test_autocast_gives_float32_metres_close_to_full_precision(kind: type[DepthHead]) -> None:
    backbone = nano()
    head = made(kind, backbone)
    features = features_for(head, backbone)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        depth = head(features)
        depth.mean().backward()
    assert depth.dtype == torch.float32
    torch.testing.assert_close(depth, head(features), rtol=0, atol=0.05)
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", HEADS)
def test_bfloat16_weights_do_not_round_the_bins(kind: type[DepthHead]) -> None:
    backbone = nano()
    head = made(kind, backbone)
    features = features_for(head, backbone)
    full = head(features)
    levels = tuple(Level(*(t.bfloat16() for t in level)) for level in features.levels)
    depth = head.bfloat16()(features._replace(levels=levels))
    assert depth.dtype == torch.float32
    torch.testing.assert_close(depth, full, rtol=0, atol=0.05)


@pytest.mark.parametrize("kind", HEADS)
def test_cls_of_a_backbone_without_one_is_refused(kind: type[DepthHead]) -> None:
    backbone = family("narrow_vit_base_patch16_siglip_224")
    setting = {LinearDepth: "cls: false", DPTDepth: "readout: ignore"}[kind]
    with pytest.raises(ValueError, match=f"siglip_224' has none.*init_args.{setting}"):
        made(kind, backbone)
    without = made(
        kind, backbone, **({"cls": False} if kind is LinearDepth else {"readout": "ignore"})
    )
    assert torch.isfinite(without(features_for(without, backbone))).all()


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 10.0), (-1.0, 10.0), (5.0, 5.0), (10.0, 1.0), (1.0, float("inf")), (float("nan"), 1.0)],
)
def test_an_impossible_range_is_refused(kind: type[DepthHead], low: float, high: float) -> None:
    with pytest.raises(
        ValueError, match=f"{kind.__name__}: min_depth_m=.*expected 0 < min_depth_m"
    ):
        kind(min_depth_m=low, max_depth_m=high)


@pytest.mark.parametrize("kind", HEADS)
def test_build_comes_first_and_once(kind: type[DepthHead]) -> None:
    backbone = nano()
    head = kind(**SMALL[kind])
    with pytest.raises(AssertionError, match=r"build\(\) comes first"):
        head(features_for(head, backbone))
    head.build(backbone)
    with pytest.raises(AssertionError, match="called once"):
        head.build(backbone)


@pytest.mark.parametrize("kind", HEADS)
def test_features_of_other_levels_or_another_grid_are_refused(kind: type[DepthHead]) -> None:
    backbone = nano()
    head = made(kind, backbone)
    features = features_for(head, backbone)
    with pytest.raises(AssertionError, match=r"not asked for blocks\(\)"):
        head(features._replace(levels=()))
    cut = tuple(Level(level.patches[:, 1:], level.prefix) for level in features.levels)
    with pytest.raises(AssertionError, match="another grid"):
        head(features._replace(levels=cut))
