"""Several experiments in one table: one row per strategy, one column per experiment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table

from kora.compare.comparison import Comparison, Group
from kora.console.formats import format_metric, format_spread
from kora.console.tables import in_markdown, literal, markdown_table, terminal_table

__all__ = ["Overview", "overview"]

_SIGNS = {"ahead": "▲", "behind": "▼", "not told apart": "≈"}
LEGEND = (
    "Mean ± half of the 95 % interval over seeds; * the best mean of a column, which is no "
    "verdict. Against {reference}: ▲ ahead, ▼ behind, ≈ not told apart; in brackets with one seed "
    "only."
)


class Overview(NamedTuple):
    """Headings, rows of text, and a sentence that explains them."""

    heads: list[str]
    rows: list[list[str]]
    note: str

    def to_markdown(self) -> str:
        """The table as a Markdown section."""
        table = markdown_table(self.heads, self.rows)
        return "\n".join(["## All experiments", "", *table, "", in_markdown(self.note)]) + "\n"

    def render(self) -> Table:
        """The table for a terminal."""
        page = Table.grid()
        page.add_row("[bold]All experiments[/bold]\n")
        page.add_row(terminal_table(self.heads, self.rows))
        page.add_row("")
        page.add_row(literal(self.note))
        return page


def overview(comparisons: Sequence[Comparison]) -> Overview | None:
    """The means of all tables side by side; None for a single table.

    Rows with values in more columns come first, then those that rank better.
    """
    if len(comparisons) < 2:
        return None
    metrics = {table.metric for table in comparisons}
    heads = [
        table.title if len(metrics) == 1 else f"{table.title}: {table.metric}"
        for table in comparisons
    ]
    ranks: dict[str, list[float]] = {}
    for table in comparisons:
        for rank, group in enumerate(table.groups):
            ranks.setdefault(group.name, []).append((rank + 1) / len(table.groups))
    names = sorted(ranks, key=lambda name: (-len(ranks[name]), sum(ranks[name]), name))
    rows = []
    for name in names:
        row = [name]
        for table in comparisons:
            mine = next((group for group in table.groups if group.name == name), None)
            row.append("–" if mine is None else _cell(table, mine))
        rows.append(row)
    references = dict.fromkeys(table.reference for table in comparisons if table.reference)
    note = (
        LEGEND.format(reference=" or ".join(references))
        if references
        else ("Mean ± half of the 95 % interval over seeds; the best mean of a column is marked *.")
    )
    if any(table.common_seeds is not None for table in comparisons):
        note += " If rows of a table have different seeds, means are over the common ones."
    (first, *_) = comparisons
    by = first.by if all(table.by == first.by for table in comparisons) else "group"
    one = f" ({first.metric})" if len(metrics) == 1 else ""
    return Overview([f"{by}{one}", *heads], rows, note)


def _cell(table: Comparison, group: Group) -> str:
    text = format_metric(table.metric, group.mean)
    if group.half_width is not None:
        text += f" ± {format_spread(table.metric, group.half_width)}"
    if group is table.groups[0]:
        text += " *"
    if group.verdict is not None:
        word, _, only = group.verdict.word.partition(" (")
        text += f" ({_SIGNS[word]})" if only else f" {_SIGNS[word]}"
    return text
