"""Claims about norms and singular values from factors."""

from __future__ import annotations

import pytest
import torch

from kora.analysis.low_rank import norm, singular_values


@pytest.mark.parametrize(("rows", "inner", "columns"), [(40, 3, 50), (4, 7, 30), (9, 6, 4)])
def test_they_are_those_of_the_product(rows: int, inner: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, inner, generator=generator, dtype=torch.float64)
    right = torch.randn(inner, columns, generator=generator, dtype=torch.float64)
    found = singular_values(left, right)
    assert len(found) == min(rows, inner, columns)
    torch.testing.assert_close(found, torch.linalg.svdvals(left @ right)[: len(found)])
    assert norm(left, right) == pytest.approx(float((left @ right).norm()), rel=1e-12)


def test_factors_of_zero_have_none_but_zeros() -> None:
    assert singular_values(torch.zeros(5, 2), torch.ones(2, 3)).tolist() == [0, 0]


def test_the_product_is_never_made() -> None:
    """Of a product of 3e6 by 3e6 numbers, which no machine could hold."""
    assert len(singular_values(torch.ones(3_000_000, 1), torch.ones(1, 3_000_000))) == 1
