"""A verdict follows one rule, says its reasons, and how much more data would tell."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from kora.analysis.statistics import images_needed, seeds_needed
from kora.compare.verdict import Difference, Verdict, verdict

CLEAR = {
    "half_width": 0.01, "std": 0.004, "images": 1000, "bootstrap": (0.01, 0.06), "p": 0.001,
    "p_holm": 0.002, "image_std": 0.5,
}  # fmt: skip


def said(
    mean: float = 0.03, n: int = 3, metric: str = "test/accuracy", **changes: object
) -> Verdict:
    options = {**CLEAR, **changes}
    return verdict("KoRA", "LinearProbe", Difference(n, mean, **options), metric, seed=0)


def test_ahead_only_where_seeds_and_images_agree() -> None:
    assert said().word == "ahead"
    assert (
        "KoRA is ahead of LinearProbe by 3.00 points: +2.00 to +4.00 over 3 seeds"
        in said().sentence
    )
    assert said(-0.03, bootstrap=(-0.06, -0.01)).word == "behind"
    assert said(half_width=0.05).word == "not told apart"
    assert said(p_holm=0.2).word == "not told apart"
    assert said(bootstrap=(-0.01, 0.06)).word == "not told apart"


def test_less_is_better_of_an_error() -> None:
    found = said(-0.03, metric="test/rmse_m", bootstrap=(-0.06, -0.01))
    assert found.word == "ahead"
    assert "ahead of LinearProbe by 0.0300: −0.0400 to −0.0200" in found.sentence
    assert "points" not in found.sentence


def test_where_seeds_and_images_disagree_the_reason_is_given_with_the_seeds_that_would_tell() -> (
    None
):
    # The row that was asked about: +3.17 ± 25.41, [-0.75, +7.00], p 0.017 with two seeds.
    found = said(
        0.0317, n=2, half_width=0.2541, std=0.0283, bootstrap=(-0.0075, 0.07), p_holm=0.017
    )
    assert found.word == "not told apart"
    assert "2 seeds leave −22.24 to +28.58 possible" in found.sentence
    assert found.seeds_needed == seeds_needed(0.0317, 0.0283)
    assert f"bout {found.seeds_needed} common seeds (there are 2)" in found.sentence


def test_where_images_are_too_few_it_says_how_many_would_tell() -> None:
    found = said(0.01, half_width=0.005, p=0.3, p_holm=0.3, image_std=0.4, bootstrap=(-0.01, 0.03))
    assert found.word == "not told apart"
    assert found.images_needed == images_needed(0.01, 0.4)
    assert "test images (there are 1,000) would tell" in found.sentence
    assert found.seeds_needed is None


def test_one_seed_speaks_of_images_alone_and_says_so() -> None:
    found = said(n=1, half_width=None, std=None)
    assert found.word == "ahead (seed 0 only)"
    assert "with seed 0 alone: +1.00 to +6.00 over 1,000 test images" in found.sentence
    assert "One seed says nothing about other seeds" in found.sentence
    assert said(n=1, half_width=None, std=None, p_holm=0.4).word == "not told apart"
    nothing = said(n=1, half_width=None, std=None, bootstrap=None, p=None, p_holm=None)
    assert nothing.word == "not told apart"


def test_without_outcomes_seeds_decide_and_that_is_said() -> None:
    found = said(images=None, bootstrap=None, p=None, p_holm=None, image_std=None)
    assert found.word == "ahead"
    assert "Test images were not considered" in found.sentence


def test_no_difference_at_all_has_no_number_of_seeds() -> None:
    found = said(0.0, half_width=0.01, p_holm=1.0, bootstrap=(-0.01, 0.01))
    assert found.seeds_needed is found.images_needed is None
    assert "No practical number" in found.sentence


@pytest.mark.parametrize(("mean", "std"), [(0.03, 0.02), (0.01, 0.02), (0.05, 0.01)])
def test_the_number_of_seeds_has_the_power_that_it_claims(mean: float, std: float) -> None:
    n = seeds_needed(mean, std)
    assert n is not None
    assert exact_power(mean / std, n) > 0.78
    assert n < 4 or exact_power(mean / std, n - 2) < 0.8


def exact_power(effect: float, n: int) -> float:
    """Of a two-sided paired t-test at 5 %, by SciPy's noncentral t."""
    return float(stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, effect * math.sqrt(n)))


def test_the_number_of_images_is_that_of_the_textbook() -> None:
    # (1.96 + 0.8416)^2 * (0.5 / 0.02)^2 = 4906
    assert images_needed(0.02, 0.5) == pytest.approx(4906, abs=1)
    draws = np.random.default_rng(0).normal(0.02, 0.5, (2000, images_needed(0.02, 0.5) or 0))
    z = draws.mean(axis=1) / draws.std(axis=1) * math.sqrt(draws.shape[1])
    assert (z > 1.96).mean() == pytest.approx(0.8, abs=0.03)
