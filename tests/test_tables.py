"""Claims about tables of text."""

from __future__ import annotations

import pytest

from kora.tables import text_cell


@pytest.mark.parametrize("text", ["=1+1", "+A1", "-A1", "@SUM(A1)", "\t=1", "\r=1"])
def test_what_a_spreadsheet_would_compute_has_an_apostrophe_before_it(text: str) -> None:
    assert text_cell(text) == f"'{text}"


@pytest.mark.parametrize("cell", ["-0.5", "-0.5 0.3", "+1e-3", "a=1", "", -0.5, None, 3])
def test_numbers_and_all_else_stay(cell: object) -> None:
    assert text_cell(cell) == cell
