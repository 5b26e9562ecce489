"""Every fragment below configs/adapters/matched has the number of parameters that it is there for.

Its folder states the budget in thousands, on ViT-B/16 (`300k`) or on the backbone before it
(`nano_100k`, `small_600k` on ViT-S/14); its first comment the count.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kora.adapters import Strategy
from kora.adapters.matching import TOLERANCE_PERCENT, count_trainable
from kora.backbone.vit import Backbone
from kora.cli.listing import config_claim
from tests.support.adapters import rebuild
from tests.support.cli import REPOSITORY

pytestmark = pytest.mark.runs

FOLDER = REPOSITORY / "configs/adapters/matched"
FILES = sorted(FOLDER.rglob("*.yaml"))
VIT_B, VIT_S, NANO = "vit_base_patch16_224", "vit_small_patch14_dinov2", "vit_nano"
BUDGETS = {
    "300k": (VIT_B, 300_000), "1200k": (VIT_B, 1_200_000), "nano_100k": (NANO, 100_000),
    "small_300k": (VIT_S, 300_000), "small_600k": (VIT_S, 600_000),
}  # fmt: skip
SEARCHED = ("adapter_plus", "kora", "kora_refined", "kora_refined_injected", "kora_side", "lora")
OTHERS = ("bottleneck", "dora", "low_rank_fusion", "vpt")  # not in the searches of configs/grids
ONE_SIZE = ("kora_over_lora",)  # in small_600k alone
DENSE = (  # for depth
    "kora_tokens", "kora_side_tokens", "kora_refined_tokens", "kora_refined_injected_tokens"
)  # fmt: skip

SEGMENTS = (  # for segmentation: all of small_300k
    "lora", "adapter_plus", "kora_tokens", "kora_refined_tokens", "kora_refined_spatial_tokens",
    "kora_over_lora_tokens", "kora_over_lora_spatial_tokens", "kora_refined_queries",
    "kora_over_lora_queries",
)  # fmt: skip


def name_of(path: Path) -> str:
    return str(path.relative_to(FOLDER))


@cache
def backbone(name: str) -> Backbone:
    with torch.device("meta"):
        return Backbone(name, weights="random")


def strategy_of(path: Path) -> Strategy:
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    strategy = rebuild(config["model"]["init_args"]["adapter"])
    assert isinstance(strategy, Strategy)
    if strategy.earlier_runs is None:
        return strategy
    sources = [
        yaml.safe_load((REPOSITORY / source).read_text(encoding="utf-8"))
        for source in strategy.earlier_runs.configs()
    ]
    of = {"name": BUDGETS[path.parent.name][0], "sha256": ""}
    records = [
        {"adapter": source["model"]["init_args"]["adapter"], "backbone": of} for source in sources
    ]
    strategy.earlier_runs.recall({"sources": records}, {}, str(path))
    return strategy


def test_every_budget_has_the_same_strategies() -> None:
    assert {path.parent for path in FILES} == {FOLDER / budget for budget in BUDGETS}
    for budget in BUDGETS:
        wanted = SEARCHED if BUDGETS[budget][0] == VIT_S else (*SEARCHED, *OTHERS)
        wanted += DENSE if BUDGETS[budget][0] == NANO else ()
        wanted += ONE_SIZE if budget == "small_600k" else ()
        wanted = SEGMENTS if budget == "small_300k" else wanted
        names = sorted(path.stem for path in (FOLDER / budget).iterdir())
        assert names == sorted(wanted)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_matched_config_is_within_five_per_cent_of_its_budget(path: Path) -> None:
    name, budget = BUDGETS[path.parent.name]
    count = count_trainable(strategy_of(path), backbone(name))
    assert abs(count - budget) <= budget * TOLERANCE_PERCENT / 100, f"{count:,} of {budget:,}"
    assert re.search(rf"\b{count:,} trainable parameters\b", config_claim(path)), f"{count:,}"
    assert f"{budget:,}" in config_claim(path)
