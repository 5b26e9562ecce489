"""Every fragment below configs/adapters/matched has the number of parameters that it is there for.

Its folder states the budget on ViT-B/16 in thousands, as in `300k`; its first comment the count.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kora.adapters import Strategy
from kora.backbones import Backbone
from kora.listing import config_claim
from kora.matching import TOLERANCE_PERCENT, count_trainable
from tests.adapters.support import rebuild
from tests.cli.support import REPOSITORY

FOLDER = REPOSITORY / "configs/adapters/matched"
FILES = sorted(FOLDER.rglob("*.yaml"))
BUDGETS = {"300k": 300_000, "1200k": 1_200_000}


def name_of(path: Path) -> str:
    return str(path.relative_to(FOLDER))


@pytest.fixture(scope="module")
def vit_b() -> Backbone:
    with torch.device("meta"):
        return Backbone("vit_base_patch16_224", weights="random")


def strategy_of(path: Path) -> Strategy:
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    strategy = rebuild(config["model"]["init_args"]["adapter"])
    assert isinstance(strategy, Strategy)
    return strategy


def test_every_budget_has_the_same_strategies() -> None:
    assert {path.parent for path in FILES} == {FOLDER / budget for budget in BUDGETS}
    names = [sorted(path.name for path in (FOLDER / budget).iterdir()) for budget in BUDGETS]
    assert names[0] == names[1]
    methods = "adapter_plus", "bottleneck", "dora", "kora", "kora_side", "lora", "vpt"
    assert names[0] == [f"{method}.yaml" for method in methods]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_matched_config_is_within_five_per_cent_of_its_budget(
    path: Path, vit_b: Backbone
) -> None:
    count = count_trainable(strategy_of(path), vit_b)
    budget = BUDGETS[path.parent.name]
    assert abs(count - budget) <= budget * TOLERANCE_PERCENT / 100, f"{count:,} of {budget:,}"
    assert re.search(rf"\b{count:,} trainable parameters\b", config_claim(path)), f"{count:,}"
    assert f"{budget:,}" in config_claim(path)
