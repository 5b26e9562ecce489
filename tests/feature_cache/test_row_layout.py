"""Tensors become rows, and rows the same tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kora.feature_cache.row_layout import Layout


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "pooled": torch.randn(4, 8, generator=generator),
        "tokens": torch.randn(4, 3, 2, generator=generator).bfloat16(),
        "none": torch.zeros(4, 0, 8),
        "number": torch.randn(4, generator=generator).double(),
    }


def test_float32_gives_back_every_bit_in_its_own_type() -> None:
    given = {**tensors(), "number": torch.tensor([0.5, 1, 2, 3], dtype=torch.float64)}
    layout = Layout.of(given, rows=4, kind="float32")
    rows = layout.pack(given)
    assert rows.shape == (4, layout.width) == (4, 8 + 6 + 0 + 1)
    assert rows.nbytes == 4 * layout.row_bytes
    found = layout.unpack(torch.from_numpy(rows))
    for name, tensor in given.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(("kind", "step"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_half_the_bytes_round_within_half_a_step(kind: str, step: float) -> None:
    given = tensors()
    layout = Layout.of(given, rows=4, kind=kind)
    rows = torch.from_numpy(layout.pack(given))
    assert layout.row_bytes == 2 * layout.width
    found = layout.unpack(rows.view(getattr(torch, kind)))
    assert found["pooled"].dtype == torch.float32
    error = (found["pooled"] - given["pooled"]).abs() / given["pooled"].abs()
    assert 0 < error.max() <= step


def test_a_number_that_is_too_large_for_float16_is_an_error() -> None:
    given = {"pooled": torch.full((1, 2), 1e5)}
    with pytest.raises(ValueError, match=r"too large for float16. Use .*bfloat16"):
        Layout.of(given, rows=1, kind="float16").pack(given)


def test_what_was_not_finite_before_stays_so() -> None:
    given = {"pooled": torch.tensor([[torch.inf, torch.nan]])}
    layout = Layout.of(given, rows=1, kind="float16")
    found = layout.unpack(torch.from_numpy(layout.pack(given)))["pooled"]
    torch.testing.assert_close(found, given["pooled"], equal_nan=True)


def test_a_layout_is_written_and_read() -> None:
    layout = Layout.of(tensors(), rows=7, kind="bfloat16")
    assert Layout.from_dict(layout.to_dict()) == layout
