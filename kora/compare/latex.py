"""A comparison as a LaTeX table, with the rules of booktabs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kora.compare.comparison import Comparison

__all__ = ["latex_table", "to_latex"]

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


def to_latex(comparisons: Iterable[Comparison]) -> str:
    """Every comparison as a table of its own, with its notes below it."""
    return "% Needs \\usepackage{booktabs} in the preamble.\n" + "\n".join(map(_table, comparisons))


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

    Args:
        caption: Above it.
        heads: Of the columns.
        rows: Cells as text.
        notes: Below it, in small letters.
        left: So many columns are aligned left, the others right.
        groups: A rule stands behind so many rows; None: there is none.
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


def _table(comparison: Comparison) -> str:
    heads, rows = comparison.cells()
    caption = f"{comparison.heading()}. {comparison.headline()}."
    return latex_table(caption, heads, rows, comparison.notes, groups=len(comparison.groups))


def _row(cells: Iterable[str]) -> str:
    row = " & ".join(map(_escape, cells))
    start = "{}" if row.startswith(("[", "*")) else ""  # or it is an option of the row before
    return start + row + r" \\"


def _escape(text: str) -> str:
    return "".join(_WRITTEN.get(sign, sign) for sign in " ".join(text.splitlines()))
