"""Features under names lead back to the same features."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kora.backbone.frozen_inputs import features_from, is_read, named_features
from kora.backbone.vit import Features
from tests.support.families import tiny


@pytest.mark.parametrize("family", ["tiny_vit", "tiny_dinov2_registers", "tiny_siglip"])
@pytest.mark.parametrize("levels", [(), (1, 0)])
def test_there_and_back(family: str, levels: tuple[int, ...], images: Tensor) -> None:
    features = tiny(family)(images, levels=levels)
    found = features_from(named_features(features))
    for name in ("pooled", "patches", "prefix"):
        assert torch.equal(getattr(found, name), getattr(features, name))
    assert len(found.levels) == len(levels)
    for mine, theirs in zip(found.levels, features.levels, strict=True):
        assert torch.equal(mine.patches, theirs.patches)
        assert torch.equal(mine.prefix, theirs.prefix)


def test_tokens_that_are_not_there_are_none(images: Tensor) -> None:
    pooled = tiny("tiny_vit")(images).pooled
    found = features_from({"pooled": pooled})
    assert found.patches.shape == found.prefix.shape == (3, 0, 32)
    assert found.levels == ()


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("pooled", True),
        ("patches", False),
        ("prefix", False),
        ("levels.0.patches", True),
        ("node.b00_qkv", True),
    ],
)
def test_what_the_head_does_not_read_is_left_out(name: str, read: bool) -> None:
    assert is_read(name, ("levels",)) == read
    assert is_read(name, Features._fields)
