"""Weighted F1 on a test set with only one true class: it says nothing beyond accuracy.

Every prediction of that class is right, so its precision is 1 and its recall is the accuracy a; the
other classes have no weight. Weighted F1 is the F1 of that class, 2a / (1 + a).
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal

__all__ = ["f1_of_one_class", "fits_one_class"]


def f1_of_one_class(accuracy: float) -> float:
    """2a / (1 + a) for an accuracy a in [0, 1]."""
    return 2 * accuracy / (1 + accuracy)


def fits_one_class(accuracy: str, f1: str) -> bool:
    """Whether a printed F1 is 2a / (1 + a) of a printed accuracy, to its last digit.

    A printed accuracy stands for every number that rounds to it, so the printed F1 must be in the
    range that these give, rounded to its own digits. Both are in [0, 1], such as "0.7104".
    """
    a, printed = Decimal(accuracy), Decimal(f1)
    half = _last_digit(a) / 2
    ends = [2 * end / (1 + end) for end in (a - half, a + half)]
    low, high = (end.quantize(_last_digit(printed), ROUND_HALF_EVEN) for end in ends)
    return low <= printed <= high


def _last_digit(number: Decimal) -> Decimal:
    """What one unit in the last printed place is worth."""
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int), "not a finite number"
    return Decimal(1).scaleb(exponent)
