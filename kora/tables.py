"""Tables of text as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["markdown_table"]


def markdown_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1
) -> list[str]:
    """Its lines; the first `left` columns are aligned left, the others right."""
    rule = [":--"] * left + ["--:"] * (len(heads) - left)
    return [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
        for row in (heads, rule, *rows)
    ]
