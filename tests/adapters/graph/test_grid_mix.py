"""Claims about the spatial step of token nodes."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kora.adapters.graph.grid_mix import GridMix
from tests.support.factory import family, nano


def test_it_starts_as_nothing() -> None:
    backbone = nano(image_size=(32, 48))
    x = torch.randn(2, 1 + 24, 5)
    assert torch.equal(GridMix(5, backbone)(x), x)


def test_it_is_a_convolution_of_each_channel_over_the_patches_alone() -> None:
    backbone = family("narrow_vit_small_patch14_reg4_dinov2")
    first, (rows, columns) = backbone.num_prefix_tokens, backbone.grid
    mix = GridMix(3, backbone)
    torch.nn.init.normal_(mix.kernel_C133)
    x = torch.randn(2, first + rows * columns + 2, 3)  # two prompts at the end
    found = mix(x)
    image = x[:, first:-2].mT.reshape(2, 3, rows, columns)
    expected = image + F.conv2d(image, mix.kernel_C133, padding=1, groups=3)
    torch.testing.assert_close(found[:, first:-2].mT.reshape(2, 3, rows, columns), expected)
    assert torch.equal(found[:, :first], x[:, :first])
    assert torch.equal(found[:, -2:], x[:, -2:])
