"""A comparison as a LaTeX table, with the rules of booktabs."""

from __future__ import annotations

from collections.abc import Iterable

from kora.comparison import Comparison

__all__ = ["to_latex"]

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


def _table(comparison: Comparison) -> str:
    heads, rows = comparison.cells()
    groups = len(comparison.groups)
    rules = [r"\toprule", _row(heads), r"\midrule", *map(_row, rows[:groups])]
    rules += [r"\midrule", *map(_row, rows[groups:])] if rows[groups:] else []
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{_escape(f'{comparison.heading()}. {comparison.headline()}.')}}}",
        rf"  \begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
        *(f"    {line}" for line in [*rules, r"\bottomrule"]),
        r"  \end{tabular}",
    ]
    if comparison.notes:
        lines += ["", r"  \smallskip", r"  \footnotesize"]
        lines += [f"  {_escape(note)}" for note in comparison.notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _row(cells: Iterable[str]) -> str:
    return " & ".join(map(_escape, cells)) + r" \\"


def _escape(text: str) -> str:
    return "".join(_WRITTEN.get(sign, sign) for sign in text)
