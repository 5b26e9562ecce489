"""Each level of a dense head gets what its nodes have sent: all earlier ones, or its own part's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from experiments.reassembly import Hears, LevelReadout, LevelSums
from kora.adapters import KoRA, RefinedForm
from kora.backbone.vit import Backbone
from kora.heads.levels import four_blocks
from tests.support.factory import nano


def images() -> Tensor:
    made = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=made)


def attached(hears: Hears) -> tuple[KoRA, Backbone]:
    backbone = nano().eval()
    backbone.levels = four_blocks(len(backbone.model.blocks))
    form = RefinedForm(sites=["proj"], pool="tokens")
    strategy = KoRA(form, 4, composer=LevelSums(hears), readout=LevelReadout())
    strategy.attach(backbone)
    return strategy.eval(), backbone


def nodes(count: int) -> list[Tensor]:
    return [torch.full((1, 1, 2), 10.0**number) for number in range(count)]


def test_a_level_sums_all_nodes_up_to_it_and_its_twin_those_of_its_part() -> None:
    sums = {}
    for hears in ("earlier", "own"):
        composer = LevelSums(hears)
        composer.build(8, 2)
        sums[hears] = composer(nodes(8))[0, 0, ::2].tolist()
    assert sums["earlier"] == [11, 1111, 111111, 11111111]
    assert sums["own"] == [11, 1100, 110000, 11000000]


def test_the_twin_has_the_same_parameters_and_both_start_as_the_backbone() -> None:
    found = []
    for hears in ("earlier", "own"):
        strategy, backbone = attached(hears)
        found.append({name: one.shape for name, one in strategy.trainable()})
        expected = nano().eval()(images()).patches
        torch.testing.assert_close(strategy(backbone, images()).patches, expected)
    assert found[0] == found[1]


def test_every_level_is_changed_and_every_parameter_trains() -> None:
    strategy, backbone = attached("earlier")
    before = strategy(backbone, images())
    with torch.no_grad():
        for _, one in strategy.trainable():
            one += 0.5
    after = strategy(backbone, images())
    for one, other in zip(before.levels, after.levels, strict=True):
        assert not torch.allclose(one.patches, other.patches)
    torch.testing.assert_close(after.levels[-1].patches, after.patches)
    sum(level.patches.square().sum() for level in after.levels).backward()
    assert [name for name, one in strategy.trainable() if not one.grad.any()] == []


def test_another_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="hears"):
        LevelSums("all")
