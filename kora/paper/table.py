"""A table of the KoRA paper: published numbers, our runs of its protocol, and honest runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kora.analysis.statistics import t_half_width
from kora.compare.compatibility import refuse_mixture, without_strays
from kora.compare.grouping import grouping
from kora.console.formats import format_metric, format_spread, is_rate
from kora.paper.cka import MATRICES, cka_command_for, cka_value, why_no_cka
from kora.paper.numbers import PaperRow, PaperTable
from kora.reports.summary import headline
from kora.runs.results import Run

__all__ = ["COLUMNS", "Entry", "Filled", "Measured", "PaperSheet", "paper_sheet"]

#: The columns that runs fill, with their headings.
COLUMNS = {"as_published": "as published, here", "honest": "honest"}
_NOT_KNOWN = "not known"
_NOTHING = "–"


@dataclass(frozen=True)
class Measured:
    """A metric over the seeds of one row, and the runs behind it."""

    values: tuple[float, ...]
    runs: tuple[Run, ...]

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return statistics.fmean(self.values)

    @property
    def half_width(self) -> float | None:
        """Half of the 95 % t-interval; None for one seed."""
        return t_half_width(self.values)


class Filled(NamedTuple):
    """A cell with the runs that fill it, or the command that would."""

    measured: Measured | None
    command: str | None  # None if nothing is missing, or nothing can be run


@dataclass(frozen=True)
class Entry:
    """One metric of one row: what was printed, and a cell for each of `COLUMNS`."""

    row: PaperRow
    metric: str
    cells: Mapping[str, Filled]

    @property
    def published(self) -> str:
        """The number as it was printed."""
        printed = self.row.published.get(self.metric)
        if printed is None:
            return _NOT_KNOWN if self.row.in_paper and self.metric != "cka/unbiased" else _NOTHING
        if self.metric == "parameters/percent":
            return f"{printed.value} %"
        if is_rate(self.metric):
            return format_metric(self.metric, float(printed.value))
        return printed.value


@dataclass(frozen=True)
class PaperSheet:
    """A whole table, as numbers and as text."""

    table: PaperTable
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]  # on runs that were left out

    heads = ("method", "metric", "published", *COLUMNS.values())

    def commands(self) -> list[str]:
        """Each command that would fill a missing cell, once, in the order of the cells."""
        named = (cell.command for entry in self.entries for cell in entry.cells.values())
        return list(dict.fromkeys(command for command in named if command is not None))

    def cells(self) -> list[list[str]]:
        """Rows as text; a missing cell has the number of its command."""
        numbers = {command: place + 1 for place, command in enumerate(self.commands())}
        rows: list[list[str]] = []
        for entry in self.entries:
            row = [entry.row.method, self.table.metrics[entry.metric], entry.published]
            for found, command in entry.cells.values():
                missing = f"{_NOTHING} [{numbers[command]}]" if command else _NOTHING
                row.append(missing if found is None else _text(entry.metric, found))
            rows.append(row)
        return rows

    def runs(self, column: str) -> list[Run]:
        """The runs behind one of `COLUMNS`, each once."""
        every = (entry.cells[column].measured for entry in self.entries)
        found = {run.folder: run for one in every if one is not None for run in one.runs}
        return list(found.values())

    def legend(self) -> list[str]:
        """Sentences on what the columns are, and which runs fill them."""
        said = [
            "In brackets after a value: the number of seeds. Intervals are 95 % t-intervals over "
            "seeds; one seed has none."
        ]
        if any(entry.published == _NOT_KNOWN for entry in self.entries):
            said.append(
                f"{_NOT_KNOWN}: a number of the paper for which this package has no checked source."
            )
        for column, head in COLUMNS.items():
            lines = dict.fromkeys(map(_headline, self.runs(column)))
            said += [f"{head}: {line}" for line in lines]
        return said


def paper_sheet(table: PaperTable, runs: Sequence[Run]) -> PaperSheet:
    """Fill a table of the paper from finished runs.

    Raises:
        ValueError: The runs of one column must not be mixed: other data, backbones or settings.
        RuntimeError: A record of CKA is damaged.
    """
    notes: list[str] = []
    columns: dict[str, list[Run]] = {}
    for name in dict.fromkeys([table.experiment, *(row.experiment for row in table.rows)]):
        if name is not None:
            columns[name], words = _column(runs, name)
            notes += words
    entries: list[Entry] = []
    for row in table.rows:
        published, mixed = _of_one_kind(
            [] if row.experiment is None else columns[row.experiment], row, "as published"
        )
        honest, words = _of_one_kind(_fitting(columns[table.experiment], row), row, "honest")
        notes += [*mixed, *words]
        again = f"kora fit --config {row.config}" if row.config else None
        trains = table.command if row.honest else None
        for metric in table.metrics:
            cells = {
                "as_published": _filled(published, metric, row, again),
                "honest": _filled(honest, metric, row, trains),
            }
            entries.append(Entry(row, metric, cells))
    if any(metric in MATRICES for metric in table.metrics):
        named = {cell.command for entry in entries for cell in entry.cells.values()}
        every = {run.folder for some in columns.values() for run in some}
        lacking = sorted(f for f in every if cka_command_for(f) not in named)
        notes += [why for folder in lacking if (why := why_no_cka(folder)) is not None]
    return PaperSheet(table, tuple(entries), tuple(dict.fromkeys(notes)))


def _column(runs: Sequence[Run], experiment: str) -> tuple[list[Run], list[str]]:
    """The compatible trained runs of an experiment, one per strategy and seed, and notes."""
    members = [r for r in runs if r.result.experiment == experiment and r.result.stage == "fit"]
    if not members:
        return [], []
    group_of = grouping("strategy", members)
    agreeing, notes = without_strays(members, group_of)
    refuse_mixture(agreeing, group_of)
    return agreeing, notes


def _fitting(honest: Sequence[Run], row: PaperRow) -> list[Run]:
    """The honest runs of a row."""
    wanted = row.honest
    if wanted is None:
        return []
    return [run for run in honest if _is(run, wanted.strategy, wanted.settings)]


def _of_one_kind(runs: list[Run], row: PaperRow, column: str) -> tuple[list[Run], list[str]]:
    """The runs of a cell; none, and a note, if they are of several kinds."""
    kinds = sorted({run.result.strategy for run in runs})
    if len(kinds) < 2:
        return runs, []
    folders = ", ".join(str(run.folder) for run in runs)
    return [], [
        f"{row.method}: runs of several kinds ({'; '.join(kinds)}), {column}, of which no mean is "
        f"taken: {folders}. Name with --runs a folder that holds one kind."
    ]


def _is(run: Run, strategy: str, settings: Mapping[str, Any]) -> bool:
    arguments = run.result.settings.get("adapter", {}).get("init_args", {})
    label = run.result.strategy.partition(" (")[0]
    return label == strategy and all(arguments.get(k) == v for k, v in settings.items())


def _filled(runs: Sequence[Run], metric: str, row: PaperRow, trains: str | None) -> Filled:
    """A cell; without a value, the command that trains the runs or computes their CKA."""
    pairs = [(value, run) for run in runs if (value := _value(run, metric, row)) is not None]
    if pairs:
        values, those = zip(*pairs, strict=True)
        return Filled(Measured(values, those), None)
    if trains is not None and metric in MATRICES and runs:
        return Filled(None, cka_command_for(runs[0].folder))
    return Filled(None, trains)


def _value(run: Run, metric: str, row: PaperRow) -> float | None:
    if metric in MATRICES:
        value = cka_value(run.folder, metric, row.comparison)
    elif metric == "parameters/percent":
        value = run.result.parameters.get("percent")
    else:
        value = run.result.metrics.get(metric)
    return float(value) if value is not None and math.isfinite(value) else None


def _text(metric: str, found: Measured) -> str:
    mean, half = found.mean, found.half_width
    if metric == "parameters/percent":
        text = f"{mean:.3f} %"
        half = None  # it is counted, not measured
    elif metric in MATRICES:
        text = f"{mean:.3f}"
    else:
        text = format_metric(metric, mean)
    if half is not None:
        text += f" ± {f'{half:.3f}' if metric in MATRICES else format_spread(metric, half)}"
    return f"{text} ({len(found.values)})"


def _headline(run: Run) -> str:
    """Without the subset, which is in the config of each column."""
    protocol = {**run.result.protocol, "subset": None}
    return headline(protocol, str(run.result.backbone.get("name", "")))
