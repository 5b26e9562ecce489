"""Centered kernel alignment (CKA) of features, unbiased and from minibatches.

Shapes: n images of a batch, D width, M feature sets, G groups of batches, Q pairs, R replicates
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "LEAST_IMAGES",
    "MinibatchCKA",
    "biased_cka",
    "biased_matrix",
    "biased_on_noise",
    "unbiased_hsic",
]

#: Images per batch below which the unbiased estimate is not defined.
LEAST_IMAGES = 4
#: Features that vary by less than this share of their size are constant, up to float32's rounding.
_CONSTANT = 1e-6

Array = NDArray[np.float64]
Features = Sequence[NDArray[np.floating[Any]]]


class MinibatchCKA:
    """Linear CKA between M feature sets, from batches that are seen once.

    CKA_ij = sum_b HSIC1_b(i, j) / sqrt(sum_b HSIC1_b(i, i) * sum_b HSIC1_b(j, j)): a ratio of sums.
    HSIC1 has no bias at any batch size, so small batches estimate what the whole set would give,
    if each batch is a random draw: shuffle data that is sorted by class. Not clamped: features
    that have nothing in common scatter around 0.
    Source: Nguyen et al. 2021, arXiv:2010.15327, section 2, after Kornblith et al. 2019,
    arXiv:1905.00414.

    The sums are kept per batch, so that batches can be resampled for an interval. Beyond
    `most_groups`, neighbouring ones are added up: memory does not grow with the number of images.
    """

    def __init__(self, sets: int, *, most_groups: int = 256) -> None:
        assert most_groups > 1
        assert most_groups % 2 == 0
        self.batches = 0
        self.images = 0
        self.groups = 0
        self._sums_GMM: Array = np.zeros((most_groups, sets, sets))
        self._batches_a_group = 1

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        return self._sums_GMM.nbytes

    def update(self, features: Features) -> None:
        """Add a batch: M arrays (n, D), of any widths, of the same n images.

        Raises:
            ValueError: Fewer than 4 images, different numbers of them, or numbers that are not
                finite.
        """
        assert len(features) == self._sums_GMM.shape[1]
        hsic_MM = unbiased_hsic(features)
        if self.batches == self.groups * self._batches_a_group:  # the last group is full
            if self.groups == len(self._sums_GMM):
                self._halve()
            self.groups += 1
        self._sums_GMM[self.groups - 1] += hsic_MM
        self.batches += 1
        self.images += len(features[0])

    def matrix(self) -> Array:
        """CKA (M, M); NaN where features do not vary from image to image.

        Raises:
            ValueError: No batch was added.
        """
        if not self.batches:
            raise ValueError("No batch was added, so there is no CKA.")
        sums_MM = self._sums_GMM.sum(axis=0)
        own_M = np.diag(sums_MM)
        return _ratio(sums_MM, own_M[:, None], own_M[None, :])

    def intervals(
        self,
        pairs: Sequence[tuple[int, int]],
        *,
        replicates: int = 2000,
        seed: int = 0,
    ) -> tuple[Array, Array]:
        """Lower and upper ends (Q,) of a 95 % percentile bootstrap that draws groups of batches.

        It covers other images from the same source, for these same models. NaN with one group.
        """
        i, j = np.asarray(pairs).reshape(-1, 2).T
        if self.groups < 2:
            nothing = np.full(len(i), np.nan)
            return nothing, nothing
        rng = np.random.default_rng(seed)
        shares = np.full(self.groups, 1 / self.groups)
        times_RG = rng.multinomial(self.groups, shares, size=replicates).astype(np.float64)
        sums_GMM = self._sums_GMM[: self.groups]
        mixed_RQ, left_RQ, right_RQ = (
            times_RG @ sums_GMM[:, a, b] for a, b in ((i, j), (i, i), (j, j))
        )
        low, high = np.quantile(_ratio(mixed_RQ, left_RQ, right_RQ), (0.025, 0.975), axis=0)
        return low, high

    def _halve(self) -> None:
        half = len(self._sums_GMM) // 2
        self._sums_GMM[:half] = self._sums_GMM[0::2] + self._sums_GMM[1::2]
        self._sums_GMM[half:] = 0
        self.groups = half
        self._batches_a_group *= 2


def unbiased_hsic(features: Features) -> Array:
    """HSIC1 (M, M) between M feature sets (n, D) of the same n >= 4 images, in float64.

    With K = X X^T, L = Y Y^T, diagonals set to zero,
    HSIC1 = [tr(KL) + (1'K1)(1'L1) / ((n-1)(n-2)) - 2/(n-2) 1'KL1] / (n (n-3)),
    computed as the inner product of U-centred matrices (Szekely and Rizzo 2014, arXiv:1310.2926),
    which is the same and loses fewer digits.
    Source: Song et al. 2012, JMLR 13, HSIC_1.

    Raises:
        ValueError: As `MinibatchCKA.update`.
    """
    numbers = sorted({len(part) for part in features})
    if len(numbers) > 1:
        raise ValueError(
            f"Feature sets of {numbers[0]} and {numbers[-1]} images; expected the same ones in all."
        )
    (n,) = numbers
    if n < LEAST_IMAGES:
        raise ValueError(
            f"A batch of {n} images; the unbiased estimate needs {LEAST_IMAGES} or more."
        )
    centred_ME = np.stack([_u_centred(part, number) for number, part in enumerate(features)])
    hsic_MM: Array = centred_ME @ centred_ME.T / (n * (n - 3))
    return hsic_MM


def biased_cka(x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]]) -> float:
    """Linear CKA of two feature sets (n, D) as Kornblith et al. 2019 define it.

    Near 1 even for independent features if n is not far above D; for comparison only.
    """
    x, y = _centred(x), _centred(y)
    mixed, left, right = (np.linalg.norm(a.T @ b) ** 2 for a, b in ((x, y), (x, x), (y, y)))
    return float(mixed / np.sqrt(left * right))


def biased_matrix(features: Features) -> Array:
    """`biased_cka` (M, M) between M feature sets (n, D); NaN where features do not vary.

    In the dual form, <H K H, H L H>, as in the published notebook of KoRA.
    """
    flat_ME = np.stack([(x @ x.T).reshape(-1) for x in map(_varying, features)])
    hsic_MM: Array = flat_ME @ flat_ME.T
    own_M = np.diag(hsic_MM)
    return _ratio(hsic_MM, own_M[:, None], own_M[None, :])


def biased_on_noise(width: int, *, images: int) -> float:
    """The mean of `biased_cka` over draws of independent Gaussian features (about D / (D + n))."""
    rng = np.random.default_rng(0)
    pairs = rng.standard_normal((20, 2, images, width))
    return float(np.mean([biased_cka(x, y) for x, y in pairs]))


def _u_centred(features: NDArray[np.floating[Any]], number: int) -> Array:
    """The Gram matrix with its off-diagonal part centred in rows and columns, (n * n,).

    Raises:
        ValueError: The numbers are not finite; names the set by its number.
    """
    if not np.isfinite(features).all():
        raise ValueError(
            f"Feature set {number} holds numbers that are not finite: the model diverged."
        )
    x = _varying(features)  # centring only reduces rounding errors, which grow with offsets
    n = len(x)
    gram_nn: Array = x @ x.T
    np.fill_diagonal(gram_nn, 0)
    sums_n = gram_nn.sum(axis=0)
    half = sums_n.sum() / (2 * (n - 1) * (n - 2))
    shift_n = sums_n / (n - 2) - half
    gram_nn -= shift_n[:, None]
    gram_nn -= shift_n[None, :]
    np.fill_diagonal(gram_nn, 0)
    return gram_nn.reshape(-1)


def _varying(features: NDArray[np.floating[Any]]) -> Array:
    """Centred features; exactly zero if they do not vary from image to image."""
    x = _centred(features)
    return x * 0 if np.abs(x).max() <= _CONSTANT * np.abs(features).max() else x


def _centred(features: NDArray[np.floating[Any]]) -> Array:
    x = features.astype(np.float64)
    x -= x[0].copy()  # the mean of equal rows need not be exactly a row
    x -= x.mean(axis=0)
    return x


def _ratio(mixed: Array, left: Array, right: Array) -> Array:
    """mixed / sqrt(left * right); NaN where either is 0."""
    # The root of a square is exact, so equal features give exactly 1.
    scale = np.sqrt(left * right)
    ratio = np.full(mixed.shape, np.nan)
    np.divide(mixed, scale, out=ratio, where=scale > 0)
    return ratio
