"""Claims about the estimator of CKA: equal to a published one, unbiased, and of bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ckatorch import cka_base, cka_batch
from numpy.typing import NDArray

from kora.analysis.cka import (
    MinibatchCKA,
    biased_cka,
    biased_matrix,
    biased_on_noise,
    unbiased_hsic,
)

Array = NDArray[np.float64]


def features(seed: int, *shape: int) -> Array:
    """Standard normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape)


def related(batches: int, images: int, *, noise: float = 1.0, seed: int = 0) -> list[list[Array]]:
    """Batches of two feature sets, 20 and 12 wide, that share a signal of 5 dimensions."""
    rng = np.random.default_rng(seed)
    to_x, to_y = rng.standard_normal((5, 20)), rng.standard_normal((5, 12))
    made = []
    for _ in range(batches):
        signal = rng.standard_normal((images, 5))
        x = signal @ to_x + noise * rng.standard_normal((images, 20)) + 3.0
        y = signal @ to_y + noise * rng.standard_normal((images, 12)) - 7.0
        made.append([x, y])
    return made


def gathered(batches: list[list[Array]], **options: int) -> MinibatchCKA:
    sums = MinibatchCKA(len(batches[0]), **options)
    for batch in batches:
        sums.update(batch)
    return sums


def by_the_formula(x: Array, y: Array) -> float:
    """HSIC1 as Song et al. (2012) write it."""
    n = len(x)
    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    mixed = k @ m
    middle = k.sum() * m.sum() / ((n - 1) * (n - 2))
    return float((np.trace(mixed) + middle - 2 / (n - 2) * mixed.sum()) / (n * (n - 3)))


@pytest.mark.parametrize(("images", "batches"), [(4, 9), (16, 1), (32, 5)])
def test_it_equals_ckatorch_on_minibatches(images: int, batches: int) -> None:
    made = related(batches, images)
    matrix = gathered(made).matrix()
    stacked = [torch.tensor(np.stack([batch[i] for batch in made])) for i in (0, 1)]
    for i in (0, 1):
        for j in (0, 1):
            assert abs(matrix[i, j] - float(cka_batch(stacked[i], stacked[j]))) < 1e-8


def test_one_batch_equals_ckatorchs_unbiased_cka_of_the_whole_set() -> None:
    x, y = related(1, 64)[0]
    expected = float(cka_base(torch.tensor(x), torch.tensor(y), unbiased=True))
    assert abs(gathered([[x, y]]).matrix()[0, 1] - expected) < 1e-8


def test_the_biased_value_equals_ckatorchs() -> None:
    x, y = related(1, 64)[0]
    assert abs(biased_cka(x, y) - float(cka_base(torch.tensor(x), torch.tensor(y)))) < 1e-8


def test_the_biased_matrix_holds_the_biased_value_of_every_pair() -> None:
    x, y = related(1, 32)[0]
    found = biased_matrix([x, y, np.ones((32, 3))])
    assert found[0, 1] == pytest.approx(biased_cka(x, y), rel=1e-9)
    assert found[0, 0] == found[1, 1] == 1
    assert np.isnan(found[2]).all(), "features that do not vary have no CKA"


@pytest.mark.parametrize("images", [4, 5, 33])
def test_hsic_is_that_of_the_published_formula(images: int) -> None:
    x, y = related(1, images)[0]
    found = unbiased_hsic([x, y])
    expected = [[by_the_formula(a, b) for b in (x, y)] for a in (x, y)]
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_it_is_a_ratio_of_sums_and_not_a_mean_of_ratios() -> None:
    made = related(6, 5, noise=3.0) + related(1, 50, noise=3.0, seed=1)  # the last one is larger
    pairs = ((0, 1), (0, 0), (1, 1))
    top, left, right = (sum(by_the_formula(b[i], b[j]) for b in made) for i, j in pairs)
    found = gathered(made).matrix()[0, 1]
    assert found == pytest.approx(top / np.sqrt(left * right), rel=1e-10)
    ratios = [gathered([batch]).matrix()[0, 1] for batch in made]
    assert abs(found - np.mean(ratios)) > 0.01


def test_of_independent_features_the_biased_value_is_near_1_and_the_unbiased_near_0() -> None:
    # 0.959 and 0.000 +- 0.002: Gaussian features of width 768, 32 images a batch.
    assert biased_on_noise(768, images=32) == pytest.approx(0.959, abs=0.0015)
    rng = np.random.default_rng(0)
    pairs = [[rng.standard_normal((32, 768)) for _ in "xy"] for _ in range(60)]
    assert np.mean([biased_cka(x, y) for x, y in pairs]) == pytest.approx(0.959, abs=0.0015)
    assert gathered(pairs).matrix()[0, 1] == pytest.approx(0, abs=0.015)


def test_the_unbiased_value_of_1000_independent_images_is_nearly_0() -> None:
    pair = [features(1, 1000, 768), features(2, 1000, 768)]
    assert biased_cka(*pair) == pytest.approx(0.434, abs=0.002)
    assert gathered([pair]).matrix()[0, 1] == pytest.approx(0, abs=0.004)


def test_small_batches_estimate_what_one_large_batch_does() -> None:
    large = related(1, 2400)[0]
    parts = [[part[i : i + 16] for part in large] for i in range(0, 2400, 16)]
    whole, small = (gathered(batches).matrix()[0, 1] for batches in ([large], parts))
    assert 0.2 < whole < 0.9
    assert small == pytest.approx(whole, abs=0.015)
    assert np.mean([biased_cka(*part) for part in parts]) > whole + 0.05


def test_order_rotation_scale_and_shift_do_not_change_it() -> None:
    x, y = related(1, 40)[0]
    expected = gathered([[x, y]]).matrix()
    rotation = np.linalg.qr(features(3, 20, 20))[0]
    order = np.random.default_rng(4).permutation(40)
    for other in (
        [x[order], y[order]],
        [x @ rotation, y],
        [x[:, ::-1], y],
        [0.01 * x, 50 * y],
        [x + 1000, y - 1000],
    ):
        np.testing.assert_allclose(gathered([other]).matrix(), expected, rtol=1e-9, atol=1e-12)


def test_a_massive_constant_channel_changes_nothing_in_single_precision() -> None:
    x, y = (part.astype(np.float32) for part in related(1, 64)[0])
    expected = gathered([[x, y]]).matrix()
    massive = [np.concatenate([part, np.full((64, 1), 300, np.float32)], axis=1) for part in (x, y)]
    np.testing.assert_allclose(gathered([massive]).matrix(), expected, rtol=1e-10)


def test_features_against_themselves_give_exactly_1() -> None:
    made = [[batch[0], batch[0].copy(), batch[1]] for batch in related(5, 16)]
    sums = gathered(made)
    assert sums.matrix()[0, 1] == 1
    low, high = sums.intervals([(0, 1)])
    np.testing.assert_array_equal([low, high], [[1], [1]])


def test_it_is_not_clamped_below_0() -> None:
    values = [gathered([[features(s, 6, 30), features(99 + s, 6, 30)]]) for s in range(20)]
    assert min(value.matrix()[0, 1] for value in values) < 0


@pytest.mark.parametrize("noise", [0.0, 1e-8])
def test_features_that_are_the_same_for_every_image_have_no_cka(noise: float) -> None:
    constant = np.full((16, 3), 0.1) + noise * features(1, 16, 3)  # up to float32's precision
    matrix = gathered([[features(0, 16, 8), constant]]).matrix()
    assert matrix[0, 0] == 1
    assert np.isnan(matrix[0, 1])
    assert np.isnan(matrix[1, 1])


def test_memory_does_not_grow_with_the_images() -> None:
    few, many = (gathered(related(number, 4), most_groups=8) for number in (3, 100))
    assert few.nbytes == many.nbytes == 8 * 2 * 2 * 8
    assert (few.batches, many.batches) == (3, 100)
    assert (few.images, many.images) == (12, 400)
    assert few.groups == 3
    assert 4 <= many.groups <= 8


def test_adding_neighbouring_batches_up_leaves_the_value_as_it_is() -> None:
    made = related(100, 8)
    apart, together = (gathered(made, most_groups=most) for most in (128, 8))
    np.testing.assert_allclose(together.matrix(), apart.matrix(), rtol=1e-12)
    (wide,), (high,) = together.intervals([(0, 1)])
    (low,), (narrow,) = apart.intervals([(0, 1)])
    assert high - wide == pytest.approx(narrow - low, rel=0.8)


def test_the_interval_holds_the_value_of_far_more_data_and_narrows_with_batches() -> None:
    every = related(1000, 16)
    truth = gathered(every).matrix()[0, 1]
    held = 0
    widths: dict[int, list[float]] = {10: [], 90: []}
    for start in range(0, 1000, 100):
        made = every[start : start + 100]
        for number in (10, 90):
            (low,), (high,) = gathered(made[:number]).intervals([(0, 1)], replicates=500)
            widths[number].append(high - low)
            held += number == 90 and low < truth < high
    assert held >= 8  # of ten
    assert np.mean(widths[90]) < 0.5 * np.mean(widths[10])


def test_the_interval_is_the_same_for_the_same_seed() -> None:
    sums = gathered(related(12, 8))
    one, again, other = (sums.intervals([(0, 1)], seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_one_batch_has_no_interval() -> None:
    low, high = gathered(related(1, 32)).intervals([(0, 1), (1, 1)])
    assert np.isnan(low).all()
    assert np.isnan(high).all()


def test_what_cannot_be_estimated_is_refused() -> None:
    sums = MinibatchCKA(2)
    with pytest.raises(ValueError, match="3 images; the unbiased estimate needs 4 or more"):
        sums.update([features(0, 3, 5), features(1, 3, 5)])
    with pytest.raises(ValueError, match="of 5 and 6 images"):
        sums.update([features(0, 5, 5), features(1, 6, 5)])
    with pytest.raises(ValueError, match="Feature set 1 holds numbers that are not finite"):
        sums.update([features(0, 5, 5), np.full((5, 5), np.nan)])
    with pytest.raises(ValueError, match="No batch"):
        sums.matrix()
