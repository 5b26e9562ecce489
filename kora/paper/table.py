"""A table of the KoRA paper: published beside measured as published beside honest runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kora.analysis.statistics import t_half_width
from kora.compare.compatibility import refuse_mixture, without_strays
from kora.compare.grouping import grouping
from kora.compare.selection import newest
from kora.console.formats import format_metric, format_spread, is_rate
from kora.paper.cka import MATRICES, cka_command_for, cka_value, why_no_cka
from kora.paper.numbers import PaperRow, PaperTable
from kora.reports.summary import headline
from kora.runs.results import Run

__all__ = ["Entry", "Measured", "PaperSheet", "paper_sheet"]

_NOT_KNOWN = "not known"
_NOTHING = "–"


@dataclass(frozen=True)
class Measured:
    """A metric over the seeds of one row, and the runs behind it."""

    values: tuple[float, ...]
    runs: tuple[Run, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.values)

    @property
    def half_width(self) -> float | None:
        """Of the 95 % t-interval; None for one seed."""
        return t_half_width(self.values)


@dataclass(frozen=True)
class Entry:
    """One metric of one row: three cells, of which `command` names what fills a missing one."""

    row: PaperRow
    metric: str
    as_published: Measured | None
    honest: Measured | None
    command_as_published: str | None  # None where nothing is missing, or nothing can be run
    command_honest: str | None

    @property
    def published(self) -> str:
        """As it was printed."""
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
    """A whole table, as numbers and as what readers see."""

    table: PaperTable
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]  # on runs that were left out

    heads = ("method", "metric", "published", "as published, here", "honest")

    def commands(self) -> list[str]:
        """Each command that would fill a missing cell, once, in the order of the cells."""
        named = (c for e in self.entries for c in (e.command_as_published, e.command_honest))
        return list(dict.fromkeys(command for command in named if command is not None))

    def cells(self) -> list[list[str]]:
        """Rows as text; a missing cell has the number of its command."""
        numbers = {command: place + 1 for place, command in enumerate(self.commands())}
        rows: list[list[str]] = []
        for entry in self.entries:
            row = [entry.row.method, self.table.metrics[entry.metric], entry.published]
            for found, command in (
                (entry.as_published, entry.command_as_published),
                (entry.honest, entry.command_honest),
            ):
                missing = f"{_NOTHING} [{numbers[command]}]" if command else _NOTHING
                row.append(missing if found is None else _text(entry.metric, found))
            rows.append(row)
        return rows

    def runs(self, column: str) -> list[Run]:
        """The runs behind a column, `as_published` or `honest`, each once."""
        found: dict[Path, Run] = {}
        for entry in self.entries:
            measured: Measured | None = getattr(entry, column)
            for run in () if measured is None else measured.runs:
                found.setdefault(run.folder, run)
        return list(found.values())

    def legend(self) -> list[str]:
        """What the columns are, and which runs stand in them."""
        said = [
            "In brackets behind a value: the number of seeds. Intervals are 95 % t-intervals over "
            "seeds; one seed has none."
        ]
        if any(entry.published == _NOT_KNOWN for entry in self.entries):
            said.append(
                f"{_NOT_KNOWN}: a number of the paper for which this package has no checked source."
            )
        for head, cell in (("as published, here", "as_published"), ("honest", "honest")):
            lines = dict.fromkeys(map(_headline, self.runs(cell)))
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
        published = [] if row.experiment is None else columns[row.experiment]
        honest, words = _chosen(columns[table.experiment], row)
        notes += words
        for metric in table.metrics:
            commands = (
                _command(metric, published, f"kora fit --config {row.config}"),
                _command(metric, honest, table.command),
            )
            first, second = (_measured(some, metric, row) for some in (published, honest))
            entries.append(
                Entry(
                    row=row,
                    metric=metric,
                    as_published=first,
                    honest=second,
                    command_as_published=commands[0] if first is None and row.config else None,
                    command_honest=commands[1] if second is None and row.honest else None,
                )
            )
    if any(metric in MATRICES for metric in table.metrics):
        named = {command for e in entries for command in (e.command_as_published, e.command_honest)}
        every = {run.folder for some in columns.values() for run in some}
        lacking = sorted(f for f in every if cka_command_for(f) not in named)
        notes += [why for folder in lacking if (why := why_no_cka(folder)) is not None]
    return PaperSheet(table, tuple(entries), tuple(dict.fromkeys(notes)))


def _column(runs: Sequence[Run], experiment: str) -> tuple[list[Run], list[str]]:
    """The trained runs of an experiment that go together, one a strategy and seed, and notes."""
    members = [r for r in runs if r.result.experiment == experiment and r.result.stage == "fit"]
    if not members:
        return [], []
    group_of = grouping("strategy", members)
    agreeing, strays = without_strays(members, group_of)
    chosen, older = newest(agreeing, group_of)
    refuse_mixture(chosen, group_of)
    return chosen, [*strays, *older]


def _chosen(honest: Sequence[Run], row: PaperRow) -> tuple[list[Run], list[str]]:
    """The honest runs of a row; none, and a note, where they are of several kinds."""
    if row.honest is None:
        return [], []
    wanted = row.honest
    fitting = [run for run in honest if _is(run, wanted.strategy, wanted.settings)]
    kinds = sorted({run.result.strategy for run in fitting})
    if len(kinds) > 1:
        folders = ", ".join(str(run.folder) for run in fitting)
        return [], [
            f"{row.method}: honest runs of several kinds ({'; '.join(kinds)}), of which no mean "
            f"is taken: {folders}. Name with --runs a folder that holds one kind."
        ]
    return fitting, []


def _is(run: Run, strategy: str, settings: Mapping[str, Any]) -> bool:
    arguments = run.result.settings.get("adapter", {}).get("init_args", {})
    label = run.result.strategy.partition(" (")[0]
    return label == strategy and all(arguments.get(k) == v for k, v in settings.items())


def _measured(runs: Sequence[Run], metric: str, row: PaperRow) -> Measured | None:
    pairs = [(value, run) for run, value in _values(runs, metric, row)]
    if not pairs:
        return None
    values, those = zip(*pairs, strict=True)
    return Measured(values, those)


def _values(runs: Sequence[Run], metric: str, row: PaperRow) -> Iterator[tuple[Run, float]]:
    for run in runs:
        if metric in MATRICES:
            value = cka_value(run.folder, metric, row.comparison)
        elif metric == "parameters/percent":
            value = run.result.parameters.get("percent")
        else:
            value = run.result.metrics.get(metric)
        if value is not None and math.isfinite(value):
            yield run, float(value)


def _command(metric: str, runs: Sequence[Run], trains: str) -> str:
    """What fills a cell: the training, or of runs that are there what the figure reads."""
    if metric in MATRICES and runs:
        return cka_command_for(runs[0].folder)
    return trains


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
