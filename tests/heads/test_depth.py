"""Claims about the linear depth head and about bins; test_depth_contract.py holds the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kora.backbone.vit import Features, Level
from kora.heads import DPTDepth, LinearDepth
from kora.heads.depth import depth_of_bins, four_blocks
from tests.support.factory import nano
from tests.support.heads import features_for, made


def literal(head: LinearDepth, features: Features, grid: tuple[int, int]) -> Tensor:
    """DINOv2's order of work: concatenate, upsample, project, normalise each bin, average."""
    maps = []
    for level in features.levels:
        parts = [level.patches]
        if head.cls:
            parts.append(level.prefix[:, :1].expand_as(level.patches))
        maps += [part.transpose(1, 2).unflatten(2, grid).double() for part in parts]
    wide = F.interpolate(torch.cat(maps, 1), scale_factor=head.upsample, mode="bilinear")
    weight, bias = head.project.weight.double(), head.project.bias.double()
    weights = F.conv2d(wide, weight[:, :, None, None], bias).relu() + 0.1
    share = weights / weights.sum(dim=1, keepdim=True)
    bins = torch.linspace(head.min_depth_m, head.max_depth_m, head.bins, dtype=torch.float64)
    return torch.einsum("bkhw,k->bhw", share, bins)


@pytest.mark.parametrize("upsample", [1, 3, 4])
@pytest.mark.parametrize("cls", [True, False])
@pytest.mark.parametrize("levels", [1, 4])
def test_projecting_first_equals_the_literal_order(levels: Any, cls: bool, upsample: int) -> None:
    backbone = nano(image_size=(40, 56))
    options = {"levels": levels, "cls": cls, "upsample": upsample, "bins": 32}
    head = made(LinearDepth, backbone, **options)
    assert isinstance(head, LinearDepth)
    features = features_for(head, backbone, scale=3.0)
    depth = head(features)
    expected = literal(head, features, (5, 7))
    assert depth.shape == expected.shape == (2, 5 * upsample, 7 * upsample)
    assert expected.std() > 0.1  # metres: there is something to agree on
    torch.testing.assert_close(depth.double(), expected, rtol=1e-5, atol=1e-5)


def test_gradients_equal_those_of_the_literal_order() -> None:
    backbone = nano(image_size=(24, 16))
    head = made(LinearDepth, backbone, levels=4, bins=16)
    assert isinstance(head, LinearDepth)
    features = features_for(head, backbone)
    pull = torch.randn(2, 12, 8)
    parameters = list(head.parameters())
    mine = torch.autograd.grad((head(features) * pull).sum(), parameters)
    theirs = torch.autograd.grad((literal(head, features, (3, 2)) * pull).sum(), parameters)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_depth_of_bins_is_the_formula_on_numbers_worked_by_hand() -> None:
    logits = torch.tensor([0.9, -5.0, 0.4]).view(1, 3, 1, 1)
    # Weights 1.0, 0.1, 0.5 on 1 m, 3 m, 5 m.
    depth = depth_of_bins(logits, min_depth_m=1.0, max_depth_m=5.0)
    assert depth.item() == pytest.approx((1.0 * 1 + 0.1 * 3 + 0.5 * 5) / 1.6)
    nothing = torch.full((1, 3, 1, 1), -1.0)
    assert depth_of_bins(nothing, min_depth_m=1.0, max_depth_m=5.0).item() == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("depth", "blocks"),
    [
        (4, (0, 1, 2, 3)),
        (6, (0, 2, 3, 5)),
        (12, (2, 5, 8, 11)),  # DINOv2's lin.4 of ViT-S and ViT-B
        (24, (5, 11, 17, 23)),  # DPT's hooks of ViT-L
        (40, (9, 19, 29, 39)),  # DINOv2's ViT-g
    ],
)
def test_four_blocks_are_equally_spaced(depth: int, blocks: tuple[int, ...]) -> None:
    assert four_blocks(depth) == blocks
    assert LinearDepth(levels=4).blocks(depth) == DPTDepth().blocks(depth) == blocks
    assert LinearDepth().blocks(depth) == (depth - 1,)


@pytest.mark.parametrize("make", [DPTDepth, lambda: LinearDepth(levels=4)])
def test_four_levels_of_three_blocks_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"has 3. Use a linear head with levels: 1"):
        make().blocks(3)


def test_permuted_patches_permute_the_depth() -> None:
    backbone = nano(image_size=(40, 56))
    head = made(LinearDepth, backbone, levels=4, upsample=1)
    features = features_for(head, backbone)
    order = torch.randperm(35, generator=torch.Generator().manual_seed(0))
    permuted = tuple(Level(level.patches[:, order], level.prefix) for level in features.levels)
    depth = head(features._replace(levels=permuted))
    torch.testing.assert_close(depth.flatten(1), head(features).flatten(1)[:, order])


def test_patches_lie_row_by_row() -> None:
    backbone = nano(image_size=(40, 56))
    head = made(LinearDepth, backbone)
    features = features_for(head, backbone)
    before = head(features)
    patches = features.levels[0].patches.clone()
    patches[:, 2 * 7 + 4] += 5.0  # row 2, column 4
    level = Level(patches, features.levels[0].prefix)
    rows, columns = torch.nonzero((head(features._replace(levels=(level,))) - before)[0]).T
    # Bilinear upsampling by 4 reaches half a patch beyond the patch itself.
    assert (rows.min(), rows.max()) == (2 * 4 - 2, 2 * 4 + 5)
    assert (columns.min(), columns.max()) == (4 * 4 - 2, 4 * 4 + 5)


@pytest.mark.parametrize(
    ("base", "changed"),
    [
        ({}, {"levels": 4}),
        ({}, {"cls": False}),
        ({}, {"bins": 64}),
        ({}, {"min_depth_m": 0.5}),
        ({}, {"max_depth_m": 80.0}),
        ({}, {"upsample": 2}),
    ],
    ids=lambda options: "-".join(options) or "default",
)
def test_every_argument_changes_something(base: dict[str, Any], changed: dict[str, Any]) -> None:
    backbone = nano()
    outputs = []
    for options in (base, {**base, **changed}):
        head = made(LinearDepth, backbone, **options)
        for name, value in options.items():
            assert getattr(head, name) == value  # kept under its name
            assert f"{name}={value!r}" in repr(head)
        outputs.append(head(features_for(head, backbone)))
    one, other = outputs
    assert one.shape != other.shape or (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("levels", [1, 4])
@pytest.mark.parametrize("cls", [True, False])
def test_parameters_are_those_of_one_convolution(levels: Any, cls: bool) -> None:
    head = made(LinearDepth, nano(), levels=levels, cls=cls, bins=100)
    count = sum(p.numel() for p in head.parameters())
    assert count == (levels * 128 * (2 if cls else 1) + 1) * 100


def test_both_ends_of_the_range_can_be_said_and_rounding_does_not_pass_them() -> None:
    generator = torch.Generator().manual_seed(0)
    for far in torch.linspace(1, 80, 50).tolist():
        near = far / 7
        logits = torch.zeros(2, 256, 20, 1)
        logits[0, 0] = logits[1, -1] = 1e9 * (1 + torch.rand(20, 1, generator=generator))
        depth = depth_of_bins(logits, min_depth_m=near, max_depth_m=far)
        torch.testing.assert_close(depth[0], torch.full((20, 1), near), rtol=1e-4, atol=0)
        torch.testing.assert_close(depth[1], torch.full((20, 1), far), rtol=1e-4, atol=0)
        assert depth.min() >= torch.tensor(near)
        assert depth.max() <= torch.tensor(far)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 2}, r"levels=2, expected 1 .* or 4"),
        ({"bins": 1}, "bins=1, expected 2 or more"),
        ({"upsample": 0}, "upsample=0, expected 1 or more"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"LinearDepth: {message}"):
        LinearDepth(**options)
