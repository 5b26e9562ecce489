"""Claims about where adapters may sit, and that what sits there has an effect."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.models import register_model
from torch import Tensor, nn

from kora.adapters import LoRA
from kora.backbone.sites import ALL_SITES, Site, SiteLinear, find_sites, wrap
from kora.backbone.vit import Backbone
from tests.support.factory import FAMILIES, LIVE, family, nano


@pytest.mark.parametrize("name", LIVE)
@pytest.mark.parametrize("site", ["qkv", "v"])
def test_a_site_that_forward_bypasses_is_refused_with_the_remedy(name: str, site: str) -> None:
    backbone = family(name)
    with pytest.raises(ValueError, match=rf"'{site}' of {name} is never called.*no effect") as told:
        LoRA(sites=["proj", site]).attach(backbone)
    assert "Use sites=['proj', 'fc1', 'fc2']" in str(told.value)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_adapter_of_every_family_changes_the_output(name: str) -> None:
    backbone = family(name)
    strategy = LoRA(rank=1, sites=LIVE.get(name, ALL_SITES))
    strategy.attach(backbone)
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    silent = []
    with torch.no_grad():
        frozen = backbone(image)
        assert torch.equal(strategy(backbone, image).pooled, frozen.pooled)
        for key, delta in strategy.deltas.items():
            delta.up_OR.fill_(50.0)  # LayerScale begins at 1e-6
            changed = strategy(backbone, image)
            delta.up_OR.zero_()
            # CLS alone says nothing of the last block's patches, so all tokens are compared.
            if torch.equal(changed.patches, frozen.patches):
                silent.append(key)
    assert len(strategy.deltas) == backbone.depth * len(strategy.sites)
    assert silent == []


@pytest.mark.parametrize("sites", [["q"], ["k"], ["v"], ["q", "v"], ["v", "q"], ["q", "k", "v"]])
def test_row_slices_equal_a_reference_merged_into_the_fused_weight(
    sites: list[str], images: Tensor
) -> None:
    backbone, merged = nano(), nano()
    strategy = LoRA(rank=2, alpha=0.7, sites=sites)
    strategy.attach(backbone)
    with torch.no_grad():
        for i, block in enumerate(merged.model.blocks):
            for name in sites:
                delta = strategy.deltas[f"b{i:02d}_{name}"]
                delta.up_OR.normal_(std=0.3)
                first = 128 * "qkv".index(name)
                block.attn.qkv.weight[first : first + 128] += 0.7 * delta.up_OR @ delta.down_RI
        expected, found = merged(images), strategy(backbone, images)
    torch.testing.assert_close(found.pooled, expected.pooled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.patches, expected.patches, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected.pooled, nano()(images).pooled, atol=1e-3)


@pytest.mark.parametrize("sites", [["qkv", "q"], ["v", "qkv"], ["q", "q"], ["fc1", "fc1"]])
def test_sites_that_overlap_are_refused(sites: list[str]) -> None:
    with pytest.raises(ValueError, match=r"block 0 cover the same rows.*Name each row once"):
        find_sites(nano(), sites)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("qvk", "qkv"), ("fc3", "fc"), ("projj", "proj"), ("attn.proj", "proj")],
)
def test_an_unknown_site_is_told_what_is_near_and_what_is_there(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=rf"no site '{name}'.*Known.*Did you mean '{hint}") as told:
        find_sites(nano(), [name])
    assert "['fc1', 'fc2', 'proj', 'qkv', 'q', 'k', 'v']" in str(told.value)


def test_no_site_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="sites is empty, so nothing would train"):
        find_sites(nano(), [])


@pytest.mark.parametrize("blocks", [[6], [-7], [0, 7], []])
def test_blocks_out_of_range_are_refused(blocks: list[int]) -> None:
    with pytest.raises(ValueError, match=r"expected numbers from 0 to 5 \(.*-6\), at least one"):
        find_sites(nano(), ["qkv"], blocks=blocks)


def test_blocks_are_counted_from_the_end_as_well() -> None:
    keys = [site.key for site in find_sites(nano(), ["fc2"], blocks=[-1, -6, 0])]
    assert keys == ["b00_fc2", "b05_fc2"]


def test_blocks_choose_and_come_in_forward_order() -> None:
    keys = [site.key for site in find_sites(nano(), ["fc2", "v", "q"], blocks=[4, 1, 4])]
    assert keys == ["b01_q", "b01_v", "b01_fc2", "b04_q", "b04_v", "b04_fc2"]


def test_the_sites_of_twelve_blocks_are_48_in_forward_order() -> None:
    backbone = Backbone("vit_tiny_patch16_224", weights="random", image_size=32)
    keys = [site.key for site in find_sites(backbone, ["fc2", "fc1", "proj", "qkv"])]
    assert keys == [f"b{i:02d}_{name}" for i in range(12) for name in ALL_SITES]


def test_separate_projections_are_found_by_the_same_names() -> None:
    """timm's larger EVA02 has q_proj, k_proj and v_proj instead of a fused qkv."""

    @register_model
    def tiny_separate(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        model = timm.create_model("tiny_vit", **kwargs)
        for block in model.blocks:
            block.attn = Separate(block.attn)
        return model

    backbone = Backbone("tiny_separate", weights="random", image_size=32)
    found = find_sites(backbone, ["q", "v_proj"], blocks=[0])
    assert [site.path for site in found] == ["blocks.0.attn.q_proj", "blocks.0.attn.v_proj"]
    assert all(site.rows is None for site in found)
    with pytest.raises(ValueError, match="cover the same rows"):
        find_sites(backbone, ["q", "q_proj"])
    with pytest.raises(ValueError, match=r"no site 'qkv'. Known sites: .*'q_proj'"):
        find_sites(backbone, ALL_SITES)


class Separate(nn.Module):
    """Attention with three linear layers, without the attention: only the calls matter."""

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        width = fused.proj.in_features
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.proj = fused.proj

    def forward(self, x: Tensor, **_: object) -> Tensor:
        return self.proj(self.q_proj(x) * self.k_proj(x) + self.v_proj(x))


def test_a_layer_of_the_same_name_deeper_inside_is_not_meant() -> None:
    """The relative positions of vit_relpos come out of an MLP of their own, within attention."""
    backbone = Backbone("vit_relpos_small_patch16_224", weights="random", image_size=32)
    paths = [site.path for site in find_sites(backbone, ["fc1", "fc2"], blocks=[1])]
    assert paths == ["blocks.1.mlp.fc1", "blocks.1.mlp.fc2"]


def test_head_is_a_site_only_where_it_is_kept_and_dead_sites_are_allowed() -> None:
    kept = Backbone("vit_tiny_patch16_224", weights="random", image_size=32, keep_classifier=True)
    with pytest.raises(ValueError, match="keep_classifier: true"):
        find_sites(nano(), ["qkv", "head"], allow_dead_sites=True)
    with pytest.raises(ValueError, match="'head' of vit_tiny_patch16_224 is never called"):
        find_sites(kept, ["qkv", "head"])
    sites = find_sites(kept, ["head", "qkv"], blocks=[3], allow_dead_sites=True)
    assert [site.key for site in sites] == ["b03_qkv", "head"]
    assert (sites[1].d_in, sites[1].d_out) == (192, 1000)


@pytest.mark.parametrize("name", LIVE)
def test_a_dead_site_whose_weight_is_read_is_refused_even_where_dead_sites_are_allowed(
    name: str,
) -> None:
    with pytest.raises(
        ValueError, match=rf"'v' of {name} .* allow_dead_sites .*sites=\['proj', 'fc1', 'fc2'\]"
    ):
        find_sites(family(name), ["proj", "v"], allow_dead_sites=True)


def test_a_wrapped_layer_has_no_weight_to_be_bypassed_with() -> None:
    backbone = nano()
    wrap(backbone, find_sites(backbone, ["qkv"], blocks=[0])[0], lambda x: None)
    layer = backbone.model.blocks[0].attn.qkv
    assert isinstance(layer, SiteLinear)
    with pytest.raises(AttributeError, match="weight"):
        _ = layer.weight


def test_looking_changes_nothing_and_sees_the_input_of_the_layer(images: Tensor) -> None:
    backbone, seen = nano(), []
    expected = backbone(images).patches
    for site in find_sites(backbone, ["fc2"]):
        wrap(backbone, site, lambda x: seen.append(tuple(x.shape)))
    assert torch.equal(backbone(images).patches, expected)
    assert seen == [(3, 65, 512)] * 6


def test_two_strategies_may_share_a_layer(images: Tensor) -> None:
    backbone, merged = nano(), nano()
    for strategy, first in ((LoRA(2, sites=["q"]), 0), (LoRA(2, sites=["k"]), 128)):
        strategy.attach(backbone)
        with torch.no_grad():
            for i, delta in enumerate(strategy.deltas.values()):
                delta.up_OR.normal_()
                rows = merged.model.blocks[i].attn.qkv.weight[first : first + 128]
                rows += delta.up_OR @ delta.down_RI
    torch.testing.assert_close(backbone(images).pooled, merged(images).pooled, rtol=1e-5, atol=1e-5)


def test_a_site_names_its_row_of_the_table() -> None:
    assert Site(3, "qkv", "blocks.3.attn.qkv", 8, 24).key == "b03_qkv"
    assert Site(None, "head", "head", 8, 10).key == "head"
