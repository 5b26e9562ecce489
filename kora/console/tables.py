"""Tables of text: for a terminal, as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "csv_text",
    "in_markdown",
    "latex_table",
    "literal",
    "markdown_table",
    "terminal_table",
    "text_cell",
    "visible",
]

#: LaTeX for characters that have another meaning there.
_WRITTEN = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "−": "$-$",
    "·": r"$\cdot$",
    "–": "--",
}


def terminal_table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: Collection[int] = (0,),
    whole: Collection[int] = (),
    dim: Collection[int] = (),
    title: str | None = None,
) -> Table:
    """A table for rich's console; none of its text is markup, or moves the cursor.

    Columns in `left` are aligned left, the others right; cells of columns in `whole` are not
    wrapped. Rows in `dim` are dimmed.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False,
        title=None if title is None else literal(title),
    )  # fmt: skip
    for place, head in enumerate(heads):
        table.add_column(
            literal(head),
            justify="left" if place in left else "right",
            no_wrap=place in whole,
            min_width=max(map(len, head.split()), default=0),
        )
    for number, row in enumerate(rows):
        table.add_row(*map(literal, row), style="dim" if number in dim else None)
    return table


def markdown_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1
) -> list[str]:
    """The lines of a table; the first `left` columns are aligned left, the others right."""
    rule = [":--"] * left + ["--:"] * (len(heads) - left)
    return [
        "| " + " | ".join(in_markdown(cell).replace("|", "\\|") for cell in row) + " |"
        for row in (heads, rule, *rows)
    ]


def in_markdown(text: str) -> str:
    """Text on one line, of which nothing becomes an HTML tag or a link."""
    line = " ".join(text.splitlines())
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", line).replace("](", "]\\(")


def latex_table(
    caption: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str] = (),
    *,
    left: int = 1,
    groups: int | None = None,
) -> str:
    """A table with the rules of booktabs.

    The first `left` columns are aligned left, the others right. A rule follows the first `groups`
    rows.
    """
    first = len(rows) if groups is None else groups
    rules = [r"\toprule", _row(heads), r"\midrule", *map(_row, rows[:first])]
    rules += [r"\midrule", *map(_row, rows[first:])] if rows[first:] else []
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{_escape(caption)}}}",
        rf"  \begin{{tabular}}{{{'l' * left}{'r' * (len(heads) - left)}}}",
        *(f"    {line}" for line in [*rules, r"\bottomrule"]),
        r"  \end{tabular}",
    ]
    if notes:
        lines += ["", r"  \smallskip", r"  \footnotesize"]
        lines += [f"  {_escape(note)}" for note in notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def csv_text(records: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Records as CSV, one per line, with a header; a spreadsheet computes none of the text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writerow({name: text_cell(name) for name in columns})
    writer.writerows({k: text_cell(v) for k, v in record.items()} for record in records)
    return text.getvalue()


def visible(text: str) -> str:
    """Text with unprintable characters escaped; line breaks and tabs stay."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text
    )


def literal(text: str) -> str:
    """Text of a file for rich's console: without markup, and without a terminal's commands."""
    from rich.markup import escape

    return escape(visible(text))


def text_cell(value: Any) -> Any:
    """A CSV cell, with an apostrophe before what a spreadsheet would compute. Numbers stay."""
    if not isinstance(value, str) or value[:1] not in ("=", "+", "-", "@", "\t", "\r"):
        return value
    try:
        [float(word) for word in value.split()]
    except ValueError:
        return f"'{value}"
    return value


def _row(cells: Iterable[str]) -> str:
    row = " & ".join(map(_escape, cells))
    start = "{}" if row.startswith(("[", "*")) else ""  # else it is an option of the row before
    return start + row + r" \\"


def _escape(text: str) -> str:
    return "".join(_WRITTEN.get(sign, sign) for sign in " ".join(text.splitlines()))
