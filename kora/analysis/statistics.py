"""The statistics of a comparison, in plain NumPy: intervals, a permutation test, Holm's correction.

What each means, and does not mean: docs/explanation/statistics.md. Every function gives the same
numbers each time, as it draws from its own generator.

Shapes: S seeds, I images, U distinct images, B resamples
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "RESAMPLES",
    "Lead",
    "crossed_bootstrap",
    "holm",
    "images_needed",
    "lead",
    "seeds_needed",
    "sign_flip_p",
    "t_half_width",
    "wilson",
]

Floats = NDArray[np.float64]

RESAMPLES = 10_000  # of the bootstrap and of the permutation test
_LEVEL = 0.95
_POWER = 0.8
_AT_ONCE = 4_000_000  # numbers drawn at a time, which bounds the memory
_EXACT = 1 << 21  # most different sums of flipped signs that are all counted


def t_half_width(sample: Sequence[float]) -> float | None:
    """Half the 95 % t-interval of the mean of n values, t(n - 1) s / sqrt(n); None if n < 2."""
    n = len(sample)
    if n < 2:
        return None
    from scipy.special import stdtrit  # scipy.stats takes most of a second to import

    return float(stdtrit(n - 1, (1 + _LEVEL) / 2)) * statistics.stdev(sample) / math.sqrt(n)


class Lead(NamedTuple):
    """How far one is ahead of another on common seeds, in percentage points.

    Args:
        mean: Of the differences.
        half_width: Half of their 95 % t-interval; 0 with one seed.
        seeds: How many are common.
    """

    mean: float
    half_width: float
    seeds: int


def lead(mine: Mapping[Any, float], rival: Mapping[Any, float]) -> Lead | None:
    """The lead of shares by seed over those of a rival; None without a common seed."""
    points = [100 * (share - rival[seed]) for seed, share in mine.items() if seed in rival]
    if not points:
        return None
    return Lead(statistics.fmean(points), t_half_width(points) or 0.0, len(points))


def crossed_bootstrap(difference_SI: NDArray[Any]) -> tuple[float, float]:
    """95 % percentile interval of the mean difference, seeds and images resampled independently.

    Each resample draws S seeds and I images with replacement, and takes every drawn image of every
    drawn seed: the pigeonhole bootstrap of a crossed design (Owen 2007, arXiv:0712.1111). With one
    seed it is the interval over images alone.
    """
    difference_SI = np.asarray(difference_SI, dtype=np.float64)
    assert difference_SI.size, "no seed, or no image"
    seeds, images = difference_SI.shape
    # Equal images are drawn together: the count of each kind is multinomial. Right and wrong give
    # few kinds, so ten thousand images are as quick as ten.
    kinds_SU, counts_U = np.unique(difference_SI, axis=1, return_counts=True)
    generator = np.random.default_rng(0)
    means = np.empty(RESAMPLES)
    for part in _parts(RESAMPLES, len(counts_U)):
        size = part.stop - part.start
        weights_BS = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=size)
        weights_BU = generator.multinomial(images, counts_U / images, size=size)
        means[part] = ((weights_BS @ kinds_SU) * weights_BU).sum(axis=1)
    means /= seeds * images
    low, high = np.quantile(means, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def sign_flip_p(difference_I: NDArray[Any], *, resamples: int = RESAMPLES) -> float:
    """Two-sided p-value of a mean paired difference, by flipping the signs of single images.

    The null hypothesis is that the two models may be exchanged on every image. If there are few
    sums, all are counted; else `resamples` are drawn, and p is (1 + as extreme) / (1 + resamples),
    never zero. For right and wrong of one seed this is McNemar's exact test.
    """
    size_I = np.abs(np.asarray(difference_I, dtype=np.float64))
    observed = abs(float(np.sum(difference_I, dtype=np.float64)))
    # Images of one size are flipped together: the number that keep their sign is binomial.
    size_U, counts_U = np.unique(size_I[size_I > 0], return_counts=True)
    # Sums in another order differ in the last digits.
    reached = observed * (1 - 1e-9) - 1e-12 * float(size_I.sum())
    if math.prod((counts_U[:22] + 1).tolist()) <= _EXACT:  # each factor is at least two
        sums, probabilities = _all_sums(size_U, counts_U)
        return min(1.0, float(probabilities[np.abs(sums) >= reached].sum()))
    generator = np.random.default_rng(0)
    extreme = 0
    for part in _parts(resamples, len(counts_U)):
        kept_BU = generator.binomial(counts_U, 0.5, size=(part.stop - part.start, len(counts_U)))
        extreme += int((np.abs((2 * kept_BU - counts_U) @ size_U) >= reached).sum())
    return (1 + extreme) / (1 + resamples)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values by name, with Holm's correction (1979), which bounds the family-wise error rate."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    ordered = sorted(p_values.items(), key=lambda item: item[1])
    for place, (name, p) in enumerate(ordered):
        largest = max(largest, min(1.0, p * (len(ordered) - place)))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def seeds_needed(mean: float, std: float, *, level: float = 0.05) -> int | None:
    """Number of seeds at which a paired t-test finds a mean difference with a power of 80 %.

    The smallest n with n >= ((t(n - 1, 1 - level / 2) + t(n - 1, power)) std / mean)^2, the usual
    formula for paired differences (Chow, Shao and Wang 2008, Sample Size Calculations in Clinical
    Research, section 3.2, with t in place of the normal distribution). None above 1000.
    """
    if not mean:
        return None
    from scipy.special import stdtrit

    n = np.arange(2, 1001)
    quantiles = stdtrit(n - 1, 1 - level / 2) + stdtrit(n - 1, _POWER)
    enough = n[n >= (quantiles * std / mean) ** 2]
    return int(enough[0]) if len(enough) else None


def images_needed(mean: float, std: float, *, level: float = 0.05) -> int | None:
    """Number of test images at which a mean paired difference is found with a power of 80 %.

    ((z(1 - level / 2) + z(power)) std / mean)^2, as in `seeds_needed` with the normal distribution.
    None above a million.
    """
    if not mean:
        return None
    from scipy.special import ndtri

    needed = ((ndtri(1 - level / 2) + ndtri(_POWER)) * std / mean) ** 2
    return math.ceil(needed) if needed <= 1_000_000 else None


def wilson(right: int, images: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927)."""
    z = 1.959963984540054  # of the normal distribution at 97.5 %
    share, z2n = right / images, z * z / images
    middle = (share + z2n / 2) / (1 + z2n)
    half = z * math.sqrt(share * (1 - share) / images + z2n / (4 * images)) / (1 + z2n)
    return max(0.0, middle - half), min(1.0, middle + half)


def _all_sums(size_U: Floats, counts_U: NDArray[Any]) -> tuple[Floats, Floats]:
    """Every sum that flipped signs can give, with its probability."""
    from scipy.special import gammaln

    sums, logs = np.zeros(1), np.zeros(1)
    for size, count in zip(size_U, counts_U, strict=True):
        kept = np.arange(count + 1)
        ways = gammaln(count + 1) - gammaln(kept + 1) - gammaln(count - kept + 1)
        sums = (sums[:, None] + (2 * kept - count) * size).ravel()
        logs = (logs[:, None] + ways - count * math.log(2)).ravel()
    return sums, np.exp(logs)


def _parts(resamples: int, width: int) -> list[slice]:
    """The resamples in parts that fit into memory."""
    step = max(1, _AT_ONCE // max(1, width))
    return [slice(at, min(at + step, resamples)) for at in range(0, resamples, step)]
