"""Tables of text as Markdown and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["csv_text", "in_markdown", "markdown_table", "text_cell", "visible"]


def markdown_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1
) -> list[str]:
    """Its lines; the first `left` columns are aligned left, the others right."""
    rule = [":--"] * left + ["--:"] * (len(heads) - left)
    return [
        "| " + " | ".join(in_markdown(cell).replace("|", "\\|") for cell in row) + " |"
        for row in (heads, rule, *rows)
    ]


def in_markdown(text: str) -> str:
    """Text in one line, of which no name becomes a tag of HTML or a link."""
    line = " ".join(text.splitlines())
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", line).replace("](", "]\\(")


def csv_text(records: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Records as CSV, one a line, with a line of heads; text is text to a spreadsheet too."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: text_cell(v) for k, v in record.items()} for record in records)
    return text.getvalue()


def visible(text: str) -> str:
    """Text without characters that act on a terminal; a line break stays."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text
    )


def text_cell(value: Any) -> Any:
    """A cell of a CSV; an apostrophe before what a spreadsheet would compute. Numbers stay."""
    if not isinstance(value, str) or value[:1] not in ("=", "+", "-", "@", "\t", "\r"):
        return value
    try:
        [float(word) for word in value.split()]
    except ValueError:
        return f"'{value}"
    return value
