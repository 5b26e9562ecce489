"""Claims about strategies at one number of parameters; tests/cli/test_match.py has the command."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from kora.adapters import FullFineTune, KoRA, LinearProbe, LoRA, PaperForm, Strategy, TokenReadout
from kora.adapters.matching import count_trainable, match, nearest_size
from kora.backbone.vit import Backbone
from tests.support.factory import built, nano


@pytest.fixture(scope="module")
def vit_b() -> Backbone:
    with torch.device("meta"):
        return Backbone("vit_base_patch16_224", weights="random")


@pytest.mark.parametrize("target", [1, 99, 100, 149, 150, 151, 1234, 6400, 10**6])
@pytest.mark.parametrize(
    "count",
    [
        lambda n: 50 * n,
        lambda n: 50 * n + 7,
        lambda n: n * n + 3 * n,
        lambda n: n**4,
        lambda n: 50 * n if n <= 128 else _refuse(n),
    ],
    ids=["proportional", "affine", "square", "power", "limited"],
)
@pytest.mark.parametrize("start", [1, 8, 100])
def test_the_nearest_of_all_sizes_is_found(
    count: Callable[[int], int], target: int, start: int
) -> None:
    sizes = range(1, target // 50 + 200)
    candidates = [(abs(count(n) - target), n) for n in sizes if _fits(count, n)]
    best = min(candidates)[1]
    assert nearest_size(count, target, start=start) == (best, count(best))


def _refuse(size: int) -> int:
    raise ValueError(f"rank={size} is larger than the layer")


def _fits(count: Callable[[int], int], size: int) -> bool:
    try:
        return count(size) > 0
    except ValueError:
        return False


def test_few_counts_are_made_where_they_are_affine_in_the_size() -> None:
    asked: list[int] = []

    def count(size: int) -> int:
        asked.append(size)
        return 147_456 * size + 676_000

    nearest_size(count, 9_000_000, start=8)
    assert len(asked) <= 5


def test_a_refusal_at_the_configured_size_is_told() -> None:
    with pytest.raises(ValueError, match="rank=8 is larger than the layer"):
        nearest_size(_refuse, 100, start=8)


@pytest.mark.parametrize(
    "make",
    [LinearProbe, FullFineTune, lambda: LoRA(3, sites=["q", "fc1"]), lambda: KoRA(PaperForm(2), 4)],
)
def test_counting_without_storage_counts_what_a_built_task_trains_beside_its_head(
    make: Callable[[], Strategy],
) -> None:
    trained = built(make()).adapter.trainable()
    expected = sum(parameter.numel() for _, parameter in trained)
    with torch.device("meta"):
        backbone = nano()
    assert count_trainable(make(), backbone) == expected


def test_counting_leaves_strategy_and_backbone_as_they_are(vit_b: Backbone) -> None:
    strategy = KoRA(PaperForm(2), 4)
    names = list(vit_b.state_dict())
    assert count_trainable(strategy, vit_b) == count_trainable(strategy, vit_b)
    assert list(vit_b.state_dict()) == names
    assert not list(strategy.parameters())


def test_a_matched_strategy_has_all_of_its_other_settings(vit_b: Backbone) -> None:
    wide = KoRA(PaperForm(8, pool="tokens", sites=["v"], blocks=[0, 5]), 4, readout=TokenReadout())
    (row,) = match([("wide.yaml", wide)], vit_b, 30_000)
    expected = KoRA(
        PaperForm(row.size or 0, pool="tokens", sites=["v"], blocks=[0, 5]),
        4,
        readout=TokenReadout(),
    )
    assert row.strategy == "KoRA-tokens"
    assert row.parameters == count_trainable(expected, vit_b)
    assert abs(row.parameters - 30_000) < 2 * 1536  # what a unit of rank has at two sites of v


def test_the_row_says_what_was_found(vit_b: Backbone) -> None:
    strategies = [("a", LoRA(2)), ("b", LoRA(4, sites=["q", "v"])), ("c", LinearProbe())]
    rows = match([(name, copy.deepcopy(s)) for name, s in strategies], vit_b, 2 * 147_456 + 9_000)
    assert [(r.argument, r.configured, r.size, r.parameters) for r in rows] == [
        ("rank", 2, 2, 2 * 147_456),
        ("rank", 4, 8, 2 * 147_456),
        (None, None, None, 0),
    ]
    assert rows[0].difference_percent == pytest.approx(-100 * 9_000 / 303_912, abs=0.01)
    assert rows[2].difference_percent == -100


def test_the_hash_of_a_backbone_without_storage_is_none_of_real_weights() -> None:
    with torch.device("meta"):
        empty, small = nano(), nano(image_size=32)
    assert empty.sha256 not in (nano().sha256, small.sha256)
