"""The statistics are those of scipy where it has them, and hold what they promise elsewhere."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import stats

from kora.analysis.statistics import Lead, crossed_bootstrap, holm, lead, sign_flip_p, t_half_width

RNG = np.random.default_rng(0)


def test_the_t_interval_is_that_of_scipy() -> None:
    sample = RNG.normal(0.7, 0.01, 5)
    low, high = stats.t.interval(0.95, 4, sample.mean(), stats.sem(sample))
    half = t_half_width(sample.tolist())
    assert half == pytest.approx((high - low) / 2, rel=1e-10)
    assert t_half_width([0.5]) is None


def test_a_lead_is_over_common_seeds_in_points() -> None:
    points = [1.0, 3.0]
    found = lead({0: 0.51, 1: 0.63, 2: 0.9}, {0: 0.5, 1: 0.6, 7: 0.1})
    assert found == pytest.approx(Lead(2.0, t_half_width(points) or 0.0, 2))
    assert lead({0: 0.5}, {0: 0.6}) == pytest.approx(Lead(-10.0, 0.0, 1))
    assert lead({0: 0.5}, {1: 0.5}) is None


def test_p_of_right_and_wrong_is_mcnemars_exact_test() -> None:
    for gained, lost, same in ((14, 5, 200), (3, 0, 9), (5, 5, 0), (700, 610, 8000)):
        difference = np.r_[np.ones(gained), -np.ones(lost), np.zeros(same)]
        exact = stats.binomtest(gained, gained + lost).pvalue
        assert sign_flip_p(difference) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("shift", [0.0, 0.4, 1.0])
def test_p_of_few_values_is_scipys_exact_permutation_test(shift: float) -> None:
    difference = RNG.normal(shift, 1, 12)
    exact = stats.permutation_test(
        (difference,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True
    ).pvalue
    assert sign_flip_p(difference) == pytest.approx(exact, rel=1e-9)


def test_p_of_many_values_is_near_scipys_and_never_zero() -> None:
    difference = RNG.normal(0.09, 1, 500)
    theirs = stats.permutation_test(
        (difference,), np.mean, permutation_type="samples", n_resamples=10_000, vectorized=True,
        axis=-1, rng=np.random.default_rng(1), batch=1000,
    ).pvalue  # fmt: skip
    assert sign_flip_p(difference) == pytest.approx(theirs, abs=4 * (theirs / 10_000) ** 0.5)
    assert sign_flip_p(difference + 1) == pytest.approx(1 / 10_001)


def test_no_difference_at_all_has_p_one() -> None:
    assert sign_flip_p(np.zeros(20)) == 1


def test_seeds_that_cancel_out_have_p_one_whatever_their_mean_is_rounded_to() -> None:
    table = np.array([
        [3, 1, -1, -1, 0, 1, 0, -1], [0, 0, -1, 0, 1, 1, -1, 0], [1, -1, -1, -1, -1, 1, -1, -1],
        [-1, -1, 1, -1, 1, 0, 1, 0], [1, 1, -1, 0, 0, -1, 0, 0], [0, 1, 1, 0, 1, 1, 0, 0],
        [-1, 0, -1, 0, -1, 1, 1, -1],
    ])  # fmt: skip
    assert table.sum() == 0 != table.mean(axis=0).sum()
    assert sign_flip_p(table.mean(axis=0)) == pytest.approx(1)


def test_under_the_null_small_p_values_are_as_rare_as_they_say() -> None:
    p = np.array([sign_flip_p(RNG.integers(-3, 4, 60) / 3, resamples=500) for _ in range(600)])
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=4 * (0.05 * 0.95 / 600) ** 0.5)


def test_the_crossed_bootstrap_is_the_plain_one_done_twice() -> None:
    difference = RNG.normal(0.1, 1, (3, 40)) + RNG.normal(0, 0.3, (3, 1))
    low, high = crossed_bootstrap(difference)
    draws = RNG.integers(0, 3, (20_000, 3)), RNG.integers(0, 40, (20_000, 40))
    plain = [difference[np.ix_(s, i)].mean() for s, i in zip(*draws, strict=True)]
    spread = np.std(plain)
    assert [low, high] == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.08 * spread)


def test_the_bootstrap_sees_spread_between_seeds_and_between_images() -> None:
    def width(difference: np.ndarray) -> float:
        low, high = crossed_bootstrap(difference)
        return high - low

    seeds = np.array([[-0.1], [0.1], [0.3]])
    images = RNG.normal(0, 1, (1, 400))
    assert width(np.broadcast_to(seeds, (3, 400))) == pytest.approx(0.4, abs=0.01)
    of_images = width(np.broadcast_to(images, (3, 400)))
    assert of_images == pytest.approx(2 * 1.96 * images.std() / 20, rel=0.05)
    assert width(seeds + images) > max(of_images, 0.3)


def test_the_bootstrap_of_one_seed_is_over_images() -> None:
    difference = RNG.normal(0.2, 1, (1, 400))
    low, high = crossed_bootstrap(difference)
    half = 1.96 * float(difference.std()) / 20
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)


def test_the_same_numbers_come_every_time() -> None:
    difference = RNG.normal(0, 1, (2, 300))
    assert crossed_bootstrap(difference) == crossed_bootstrap(difference)
    assert sign_flip_p(difference[0]) == sign_flip_p(difference[0])


def test_ten_thousand_images_take_no_time() -> None:
    labels = RNG.integers(-1, 2, (5, 10_000))
    started = time.process_time()
    crossed_bootstrap(labels)
    sign_flip_p(labels.mean(axis=0))
    assert time.process_time() - started < 2


def test_holm_is_his_table() -> None:
    # p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") of R 4: 0.03 0.06 0.06 0.02
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(found) == ["a", "b", "c", "d"]
    assert holm({"a": 0.7, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}
