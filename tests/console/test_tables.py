"""Claims about tables of text."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from kora.console.tables import csv_text, in_markdown, markdown_table, terminal_table, text_cell


@pytest.mark.parametrize("text", ["=1+1", "+A1", "-A1", "@SUM(A1)", "\t=1", "\r=1"])
def test_what_a_spreadsheet_would_compute_has_an_apostrophe_before_it(text: str) -> None:
    assert text_cell(text) == f"'{text}"


@pytest.mark.parametrize("cell", ["-0.5", "-0.5 0.3", "+1e-3", "a=1", "", -0.5, None, 3])
def test_numbers_and_all_else_stay(cell: object) -> None:
    assert text_cell(cell) == cell


def test_a_name_becomes_no_tag_no_link_and_no_line_of_markdown() -> None:
    assert in_markdown("<script>x</script>") == "&lt;script>x&lt;/script>"
    assert in_markdown("a\r\nb\n# c\u2028d") == "a b # c d"
    assert in_markdown("![x](http://y)") == "![x]\\(http://y)"
    assert in_markdown("< 0.001, 3 < 4") == "< 0.001, 3 < 4"
    assert markdown_table(["<b>"], [["a\nb|c"]])[::2] == ["| &lt;b> |", "| a b\\|c |"]


def test_a_name_of_somebody_else_gives_a_terminal_no_command() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=60, no_color=True)
    console.print(
        terminal_table(["na\x1b[2Jme"], [["LoRA\x1b]52;c;eA==\x1b\\[bold]"]], title="\x07")
    )
    shown = console.file.getvalue()
    assert "\\x1b]52;c;eA==" in shown
    assert "[bold]" in shown
    assert "\x1b]52" not in shown
    assert "\x1b[2J" not in shown
    assert "\x07" not in shown


def test_a_heading_of_a_csv_is_no_formula_either() -> None:
    text = csv_text([{"=1+1": "a"}], ["=1+1"])
    assert text == "'=1+1\na\n"
