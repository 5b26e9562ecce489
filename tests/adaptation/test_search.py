"""The search by cross-validation: what it tries, what it keeps, when it gives a strategy up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kora.adaptation import search as module
from kora.adaptation.candidates import CACHED
from kora.adaptation.features import Member
from kora.adaptation.search import (
    Search,
    Searched,
    Tried,
    epochs_for,
    first_folds,
    fits_of,
    searched,
    simplest,
)
from kora.adapters import KoRA, LinearProbe, PaperForm, Strategy
from kora.backbone.frozen_inputs import is_read
from kora.feature_cache.rules import head_reads
from kora.tasks import ClassificationTask
from kora.training.batched_fit import Setting
from tests.support.families import tiny


@pytest.fixture(autouse=True)
def _short_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 30)


def member(make: Callable[[], Strategy] = LinearProbe) -> Member:
    backbone = tiny("tiny_vit")
    torch.manual_seed(0)
    task = ClassificationTask(backbone, make(), num_classes=3, head_init="zero")
    task.build()
    return Member(CACHED[0], task, None)


def told(pictures: int = 60, noise: float = 0.4) -> tuple[dict[str, torch.Tensor], Any]:
    """Inputs of three clouds, and their labels."""
    rng = np.random.default_rng(0)
    labels = np.arange(pictures) % 3
    centres = rng.normal(0, 1, (3, 32))
    points = centres[labels] + rng.normal(0, noise * 10, (pictures, 32))
    return {"pooled": torch.from_numpy(points.astype(np.float32))}, labels


def on(labels: Any, memory: Path, **options: Any) -> Search:
    folds = options.pop("folds", np.arange(len(labels)) % 5)
    return Search(labels, folds, memory, "x", 0, **options)


def test_every_picture_is_told_by_a_fit_that_did_not_train_on_it(tmp_path: Path) -> None:
    inputs, labels = told()
    found = searched(on(labels, tmp_path), member(), inputs, None)
    assert (found.best.predictions >= 0).all()
    assert len(found.best.losses) == 5
    accuracy = on(labels, tmp_path).accuracy(found)
    assert 0.6 < accuracy < 1
    wrong = dict(inputs) | {"pooled": torch.randn(60, 32, generator=torch.manual_seed(1))}
    by_chance = searched(on(labels, tmp_path / "2"), member(), wrong, None)
    assert on(labels, tmp_path).accuracy(by_chance) < 0.55, "labels are not seen in validation"


def test_sixteen_settings_then_eight_around_the_best(tmp_path: Path) -> None:
    inputs, labels = told()
    found = searched(on(labels, tmp_path), member(), inputs, None)
    rates = sorted({one.setting.head_lr for one in found.tried[:16]})
    assert (rates[0], rates[-1]) == pytest.approx((1e-5, 1e-2))
    assert len({one.setting for one in found.tried}) == len(found.tried) >= 24
    every = [one for one in found.tried if len(one.losses) == 5]
    assert found.best in every
    assert found.at_edge == []


def test_an_adapter_has_two_learning_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROUNDS", 1)
    monkeypatch.setattr(module, "_MOST", 2)
    one = member(lambda: KoRA(PaperForm(4, inject=False), 4))
    images = torch.randint(0, 256, (30, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        inputs = one.task.adapter.frozen_pass().inputs(one.task.backbone, images)
    inputs = {k: v for k, v in inputs.items() if is_read(k, head_reads(one.task))}
    found = searched(on(np.arange(30) % 3, tmp_path), one, inputs, None)
    pairs = {(t.setting.head_lr, t.setting.lr) for t in found.tried}
    assert len(pairs) == len(found.tried) == 16


def test_what_was_fitted_is_kept_and_not_fitted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, labels = told()
    before = searched(on(labels, tmp_path), member(), inputs, None)

    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr(module, "fit_together", never)
    again = searched(on(labels, tmp_path), member(), inputs, None)
    assert again.best.setting == before.best.setting
    assert (again.best.predictions == before.best.predictions).all()
    with pytest.raises(AssertionError, match="fitted again"):
        searched(on(labels[::-1].copy(), tmp_path), member(), inputs, None)


def test_what_cannot_win_any_more_is_not_finished(tmp_path: Path) -> None:
    inputs, labels = told(noise=0.2)
    leader = searched(on(labels, tmp_path), member(), inputs, None)
    nothing = {"pooled": torch.zeros(60, 32)}
    found = searched(on(labels, tmp_path / "2"), member(), nothing, leader)
    assert not found.finished
    assert len(found.tried) == 16
    level = searched(on(labels, tmp_path / "3"), member(), inputs, leader)
    assert level.finished


def test_a_validation_part_is_one_fold_that_never_trains(tmp_path: Path) -> None:
    inputs, labels = told()
    folds = np.where(np.arange(60) < 15, 0, -1)
    search = on(labels, tmp_path, folds=folds)
    found: Searched = searched(search, member(), inputs, None)
    assert (found.best.predictions >= 0).tolist() == [True] * 15 + [False] * 45
    assert search.all_folds == search.first_folds == [0]


@pytest.mark.parametrize(("pictures", "expected"), [(40, 5), (500, 3), (1500, 1)])
def test_the_first_rounds_validate_on_enough_pictures(pictures: int, expected: int) -> None:
    folds = np.arange(pictures) % 5
    assert len(first_folds(folds)) == expected
    assert fits_of(folds) == 24 * expected + 4 * (5 - expected)


def test_few_pictures_are_seen_more_often() -> None:
    assert [epochs_for(n) for n in (20, 1000, 50_000)] == [30, 25, 10]


def test_the_bar_moves_by_fits(tmp_path: Path) -> None:
    inputs, labels = told()
    shares: list[float] = []
    found = searched(on(labels, tmp_path, after=shares.append), member(), inputs, None)
    fits = sum(len(one.losses) for one in found.tried)
    assert sum(shares) == pytest.approx(fits)


def test_the_simplest_within_one_standard_error_of_the_best_is_taken(tmp_path: Path) -> None:
    labels = np.arange(100) % 3
    search = on(labels, tmp_path)

    def with_wrong(*wrong: int) -> Searched:
        said = labels.copy()
        said[list(wrong)] = (said[list(wrong)] + 1) % 3
        tried = Tried(Setting(1e-3, 1e-3), said, dict.fromkeys(range(5), 0.0))
        return Searched(member(), tried, [tried], True, [])

    luck, clear, best = with_wrong(*range(1, 12)), with_wrong(*range(9, 40)), with_wrong(*range(10))
    assert simplest(search, [luck, best]) is luck, "two pictures against one are luck"
    assert simplest(search, [clear, best]) is best
    assert simplest(search, [best, luck]) is best
    given_up = replace(luck, finished=False)
    assert simplest(search, [given_up, best]) is best
