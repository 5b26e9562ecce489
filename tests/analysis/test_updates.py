"""Claims about what strategies have changed of the weights."""

from __future__ import annotations

import pytest
import torch

from kora.adapters import KoRA, LoRA, PaperForm
from kora.adapters.bitfit import BitFit
from kora.adapters.dora import DoRA
from kora.adapters.kora import Node
from kora.adapters.ssf import SSF
from kora.analysis.quantity import Place, Quantity, Spectrum
from kora.analysis.updates import bias_changes, direction_changes, low_rank_changes, scale_changes
from kora.backbone.rewrites import frozen_layer, plain_state
from tests.support.factory import built, kick, nano

SITES = ["q", "v", "proj"]


def named(found: list[Quantity | Spectrum], name: str) -> Quantity | Spectrum:
    (one,) = [quantity for quantity in found if quantity.name == name]
    return one


@pytest.mark.parametrize("kind", [LoRA, DoRA])
def test_norms_are_those_of_the_update_and_of_its_own_rows(kind: type[LoRA]) -> None:
    backbone, strategy = nano(), kind(2, 0.5, sites=SITES, blocks=[1, 4])
    kick(built(strategy, backbone=backbone))
    found = low_rank_changes(strategy, backbone, dict(strategy.deltas))
    norms = named(found, "update_norm").values
    places: list[Place] = [(block, site) for block in "14" for site in SITES]
    assert list(norms) == places
    delta = strategy.deltas["b04_v"]
    update = 0.5 * delta.up_OR @ delta.down_RI
    weight = frozen_layer(backbone, "blocks.4.attn.qkv").weight[256:]
    assert norms["4", "v"] == pytest.approx(float(update.norm()), rel=1e-5)
    share = named(found, "update_share").values["4", "v"]
    assert share == pytest.approx(float(update.norm() / weight.norm()), rel=1e-5)
    spectrum = named(found, "update_singular_value").values["4", "v"]
    expected = torch.linalg.svdvals(update)[:2].tolist()
    assert spectrum == pytest.approx(expected, rel=1e-4)


def test_of_a_composition_that_injects_as_well() -> None:
    backbone, strategy = nano(), KoRA(PaperForm(2, blocks=[0]), 4, alpha=0.5)
    kick(built(strategy, backbone=backbone))
    deltas = {k: n.delta for k, n in strategy.nodes.items() if isinstance(n, Node)}
    norms = named(low_rank_changes(strategy, backbone, deltas), "update_norm").values
    update = 0.5 * deltas["b00_fc1"].up_OR @ deltas["b00_fc1"].down_RI
    assert norms["0", "fc1"] == pytest.approx(float(update.norm()), rel=1e-5)


def test_dora_has_the_lengths_and_the_whole_weight_too() -> None:
    backbone, strategy = nano(), DoRA(2, sites=SITES, blocks=[2])
    task = built(strategy, backbone=backbone)
    for one in direction_changes(strategy, backbone):
        assert max(map(float, one.values.values())) < 1e-6
    kick(task)
    found = direction_changes(strategy, backbone)
    before = plain_state(backbone)["blocks.2.attn.proj.weight"]
    after = strategy.merged(backbone)["blocks.2.attn.proj.weight"]
    whole = float((after - before).norm() / before.norm())
    assert named(found, "change_share").values["2", "proj"] == pytest.approx(whole, rel=1e-5)
    lengths = after.norm(dim=1) - before.norm(dim=1)
    share = float(lengths.norm() / before.norm(dim=1).norm())
    assert named(found, "length_share").values["2", "proj"] == pytest.approx(share, rel=1e-4)


def test_scales_and_shifts_count_from_where_they_do_nothing() -> None:
    strategy = SSF(sites=["proj"], blocks=[0])
    built(strategy)
    torch.nn.init.constant_(strategy.inner_affines["b00_proj"].scale_O, 1.5)
    torch.nn.init.constant_(strategy.outer_affines["norm"].shift_O, -2.0)
    scales, shifts = (one.values for one in scale_changes(strategy))
    assert scales["0", "proj"] == pytest.approx(0.5)
    assert shifts["0", "proj"] == 0
    assert (scales["–", "norm"], shifts["–", "norm"]) == (0, 2)


def test_biases_count_from_those_of_the_frozen_backbone() -> None:
    strategy, backbone = BitFit(blocks=[3], outer=False), nano()
    built(strategy, backbone=backbone)
    with torch.no_grad():
        backbone.model.blocks[3].mlp.fc2.bias += 0.25
    norms, shares = (one.values for one in bias_changes(strategy, nano()))
    assert norms["3", "fc2"] == pytest.approx(0.25 * 128**0.5)
    assert norms["3", "fc1"] == 0
    assert shares["3", "fc2"] is None or shares["3", "fc2"] > 0
