"""Claims about the DPT head; what all depth heads promise is in test_depth_contract.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.backbone.vit import Features, Level
from kora.heads import DPTDepth
from tests.support.factory import nano
from tests.support.heads import features_for, made

GRIDS = [(8, 8), (5, 7), (1, 3), (6, 4)]


def dpt(grid: tuple[int, int] = (8, 8), **options: Any) -> tuple[DPTDepth, Features]:
    """A built head on `vit_nano` of that grid, and features for it."""
    backbone = nano(image_size=(8 * grid[0], 8 * grid[1]))
    head = made(DPTDepth, backbone, **options)
    assert isinstance(head, DPTDepth)
    return head, features_for(head, backbone)


def literal(head: DPTDepth, features: Features, grid: tuple[int, int]) -> Tensor:
    """The paper's order of work in float64, on the head's tensors, taken by name."""
    state = {name: tensor.double() for name, tensor in head.state_dict().items()}

    def conv(x: Tensor, name: str, **options: Any) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **options)

    def residual(x: Tensor, name: str) -> Tensor:
        y = conv(x.relu(), f"{name}.inner.1", padding=1)
        return x + conv(y.relu(), f"{name}.inner.3", padding=1)

    images = []
    for i, level in enumerate(features.levels):
        name = f"reassemble.{i}"
        patches, cls = level.patches.double(), level.prefix[:, :1].double()
        if head.readout == "project":
            both = torch.cat([patches, cls.expand_as(patches)], dim=2)
            patches = both @ state[f"{name}.read.weight"].T + state[f"{name}.read.bias"]
            patches = F.gelu(patches)
        elif head.readout == "add":
            patches = patches + cls
        image = conv(patches.transpose(1, 2).unflatten(2, grid), f"{name}.project")
        if i < 2:
            weight, bias = state[f"{name}.resize.weight"], state[f"{name}.resize.bias"]
            image = F.conv_transpose2d(image, weight, bias, stride=(4, 2)[i])
        elif i == 3:
            image = conv(image, f"{name}.resize", stride=2, padding=1)
        images.append(conv(image, f"{name}.narrow", padding=1))
    x = residual(images[3], "fuse.3.refine_sum")
    for i in (2, 1, 0):
        x = F.interpolate(x, images[i].shape[-2:], mode="bilinear", align_corners=True)
        x = conv(x, f"fuse.{i + 1}.project")  # behind the upsampling, as published
        x = residual(x + residual(images[i], f"fuse.{i}.refine_level"), f"fuse.{i}.refine_sum")
    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
    x = conv(conv(x, "fuse.0.project"), "conv1", padding=1)
    x = F.interpolate(x, scale_factor=2, mode="bilinear")
    x = conv(conv(x, "conv2", padding=1).relu(), "conv3")
    if head.bins is None:
        low, high = head.min_depth_m, head.max_depth_m
        return low + (high - low) * x[:, 0].sigmoid()
    share = (x.relu() + 0.1) / (x.relu() + 0.1).sum(dim=1, keepdim=True)
    depths = torch.linspace(head.min_depth_m, head.max_depth_m, head.bins, dtype=torch.float64)
    return torch.einsum("bkhw,k->bhw", share, depths)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("readout", ["project", "add", "ignore"])
@pytest.mark.parametrize("bins", [16, None])
def test_equals_the_literal_order_on_any_grid(
    grid: tuple[int, int], readout: str, bins: int | None
) -> None:
    head, features = dpt(grid, readout=readout, bins=bins, min_depth_m=0.6, max_depth_m=7.0)
    with torch.no_grad():
        for parameter in head.parameters():  # louder than at the start, so that all of it is heard
            parameter *= 1.5
    depth = head(features)
    assert depth.shape == (2, 16 * grid[0], 16 * grid[1])
    assert depth.std() > 0.01
    torch.testing.assert_close(depth.double(), literal(head, features, grid), rtol=1e-4, atol=1e-4)


def mirror_kernels(head: DPTDepth, axis: int) -> None:
    """Reverse every convolution along its rows (0) or columns (1)."""
    with torch.no_grad():
        for module in head.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                module.weight.copy_(module.weight.flip(axis + 2))


@pytest.mark.parametrize("axis", [0, 1])
def test_patches_lie_row_by_row(axis: int) -> None:
    # With odd sides every step is symmetric, so mirrored tokens under mirrored kernels must give
    # the mirrored depth; with rows and columns mixed up they would not.
    head, features = dpt((5, 7))
    before = head(features)
    mirrored = tuple(
        Level(level.patches.unflatten(1, (5, 7)).flip(axis + 1).flatten(1, 2), level.prefix)
        for level in features.levels
    )
    mirror_kernels(head, axis)
    after = head(features._replace(levels=mirrored))
    torch.testing.assert_close(after, before.flip(axis + 1), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(after, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changed",
    [
        {"features": 12},
        {"readout": "add"},
        {"readout": "ignore"},
        {"channels": (4, 4, 4, 4)},
        {"bins": 64},
        {"bins": None},
        {"min_depth_m": 0.5},
        {"max_depth_m": 80.0},
        {"use_bn": True},
    ],
    ids=lambda changed: str(changed),
)
def test_every_argument_changes_something(changed: dict[str, Any]) -> None:
    base, features = dpt((3, 4), bins=256)
    other, _ = dpt((3, 4), **{"bins": 256, **changed})
    for name, value in changed.items():
        assert getattr(other, name) == value  # kept under its name
        assert f"{name}={value!r}" in repr(other)
    assert (base(features) - other(features)).abs().max() > 1e-3


@pytest.mark.parametrize("readout", ["project", "add", "ignore"])
def test_the_readout_decides_whether_cls_is_read(readout: str) -> None:
    head, features = dpt((3, 4), readout=readout)
    without = tuple(Level(level.patches, level.prefix + 1) for level in features.levels)
    same = torch.equal(head(features), head(features._replace(levels=without)))
    assert same == (readout == "ignore")


@pytest.mark.parametrize("position", range(4))
def test_every_level_is_read(position: int) -> None:
    head, features = dpt((3, 4))
    levels = list(features.levels)
    levels[position] = Level(levels[position].patches.flip(1), levels[position].prefix)
    changed = head(features._replace(levels=tuple(levels)))
    assert (head(features) - changed).abs().max() > 1e-4


@pytest.mark.parametrize("readout", ["project", "add", "ignore"])
@pytest.mark.parametrize("bins", [64, None])
@pytest.mark.parametrize("use_bn", [False, True])
@pytest.mark.parametrize("channels", [None, (6, 5, 4, 3)])
def test_parameters_are_counted_by_formula(
    readout: Any, bins: int | None, use_bn: bool, channels: Any
) -> None:
    options = {"readout": readout, "bins": bins, "use_bn": use_bn, "channels": channels}
    head, _ = dpt((2, 3), features=10, **options)
    d, f = 128, 10
    c1, c2, c3, c4 = channels or (16, 32, 64, 128)
    read = 4 * (2 * d * d + d) if readout == "project" else 0
    project = (d + 1) * (c1 + c2 + c3 + c4)
    resize = 16 * c1 * c1 + c1 + 4 * c2 * c2 + c2 + 9 * c4 * c4 + c4
    narrow = 9 * f * (c1 + c2 + c3 + c4)
    residual = 2 * (9 * f * f + (2 * f if use_bn else f))
    fuse = 7 * residual + 4 * (f * f + f)
    end = (9 * f + 1) * (f // 2) + (9 * (f // 2) + 1) * 32 + 33 * (bins or 1)
    count = sum(p.numel() for p in head.parameters())
    assert count == read + project + resize + narrow + fuse + end


@pytest.mark.parametrize("use_bn", [False, True])
@pytest.mark.parametrize("bins", [32, None])
def test_the_gradient_reaches_every_parameter(use_bn: bool, bins: int | None) -> None:
    head, features = dpt((5, 7), use_bn=use_bn, bins=bins)
    head(features).square().mean().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_batch_normalisation_uses_its_running_statistics_in_evaluation() -> None:
    head, features = dpt((3, 4), use_bn=True)
    alone = tuple(Level(*(tokens[:1] for tokens in level)) for level in features.levels)
    head.train()
    head(features)
    head.eval()
    one = head(features._replace(levels=alone))
    torch.testing.assert_close(one, head(features)[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 1}, "features=1, expected 2 or more"),
        ({"readout": "cls"}, "readout='cls', expected one of project, add, ignore"),
        ({"channels": (1, 2, 3)}, r"channels=\(1, 2, 3\), expected four numbers"),
        ({"channels": (1, 2, 3, 0)}, r"channels=\(1, 2, 3, 0\), expected four numbers"),
        ({"bins": 1}, "bins=1, expected 2 or more, or null"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"DPTDepth: {message}"):
        DPTDepth(**options)
