"""The result of a comparison of runs, and its output for terminal, Markdown, LaTeX and CSV."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from kora.compare.answers import Answers, Pair
from kora.compare.setting_differences import SettingRow
from kora.compare.verdict import Difference, Verdict, signed
from kora.console.formats import (
    baseline_name,
    format_metric,
    format_p,
    format_spread,
    is_better_higher,
    named_metric,
)
from kora.console.tables import (
    csv_text,
    in_markdown,
    latex_table,
    literal,
    markdown_table,
    terminal_table,
)
from kora.reports.summary import headline

__all__ = ["Cell", "Comparison", "Detail", "Group", "bounds", "to_csv", "to_latex"]


@dataclass(frozen=True)
class Group:
    """One row: the values of one strategy, one per seed, in the order of the seeds.

    Mean, deviation and interval are over the seeds that all groups of the comparison have, or over
    its own seeds if the groups share none.
    """

    name: str
    seeds: tuple[int | None, ...]
    values: tuple[float, ...]
    mean: float
    std: float | None  # n - 1 in the denominator; None for one seed
    half_width: float | None  # of the 95 % t-interval; None for one seed
    trainable: int | None
    percent: float | None
    fit_seconds: float | None  # mean over the seeds
    peak_memory_mib: float | None = None  # largest of the seeds
    folders: tuple[Path, ...] = ()  # of the runs, in the order of the seeds
    tested_steps: tuple[int | None, ...] = ()  # optimiser steps behind what they tested
    difference: Difference | None = None
    verdict: Verdict | None = None
    own_mean: float | None = None  # over all its seeds; None if those are the common ones


_OF_IMAGES = ("bootstrap 95 %", "p (Holm)")  # headings of what needs outcomes of each image
_VERDICT = "verdict"
_OWN = "all its seeds"
_OPTIONAL = {_OWN, *_OF_IMAGES, "peak memory"}  # left out if no group has a value


class Cell(NamedTuple):
    """The text of a cell, and its key for sorting; None comes last."""

    text: str
    key: float | str | None


def _bullet(text: str) -> Table:
    row = Table.grid(padding=(0, 1, 0, 0))
    row.add_row("•", text)
    return row


class Detail(NamedTuple):
    """A table of text with a title and an explanation."""

    title: str
    note: str
    heads: list[str]
    rows: list[list[str]]
    left: int = 1  # number of text columns, aligned left; the others hold numbers


@dataclass(frozen=True)
class Comparison:
    """Groups of runs on one protocol and backbone, best first."""

    title: str
    metric: str
    by: str
    groups: tuple[Group, ...]
    baselines: Mapping[str, float]  # scores without learning, by kind
    reference: str | None  # the group that differences refer to
    protocol: Mapping[str, Any]
    backbone: str
    notes: tuple[str, ...]
    #: The seeds that means are over, if groups have different ones; () if they share none.
    common_seeds: tuple[int | None, ...] | None = None
    settings: tuple[SettingRow, ...] = ()  # those that differ, values in the order of the groups
    answers: Answers | None = None

    def headline(self) -> str:
        """Data, backbone and evaluation protocol in one line, as far as they are stated."""
        return headline(self.protocol, self.backbone)

    def heading(self) -> str:
        """Title and metric, with "(lower is better)" if that applies."""
        return f"{self.title}: {named_metric(self.metric)}"

    def baseline_rows(self) -> list[tuple[str, str, float]]:
        """Kind, name and value of each baseline, the best first, as for the groups."""
        higher = is_better_higher(self.metric)
        ordered = sorted(self.baselines.items(), key=lambda item: item[1], reverse=higher)
        return [(kind, baseline_name(kind), value) for kind, value in ordered]

    def verdicts(self) -> list[str]:
        """A sentence for each group that was compared with the reference."""
        return [group.verdict.sentence for group in self.groups if group.verdict is not None]

    def mean_heading(self) -> str:
        """The heading of the means; it says what they are over if groups have different seeds."""
        if self.common_seeds is None:
            return "mean"
        return "mean, common seeds" if self.common_seeds else "mean, own seeds"

    def table(self) -> tuple[list[str], list[list[Cell]]]:
        """Headings and rows: one row per group, then one per baseline."""
        every = [self._row(group) for group in self.groups]
        shown = [
            (place, head)
            for place, (head, _) in enumerate(every[0])
            if head not in _OPTIONAL or any(row[place][1].key is not None for row in every)
        ]
        rows = [[row[place][1] for place, _ in shown] for row in every]
        for _, name, value in self.baseline_rows():
            known = Cell(format_metric(self.metric, value), value)
            empty = Cell("", None)
            rows.append([Cell(name, name), empty, known] + [empty] * (len(shown) - 3))
        return [head for _, head in shown], rows

    def _row(self, group: Group) -> list[tuple[str, Cell]]:
        """Every possible column, with its heading."""
        metric, d, memory = self.metric, group.difference, group.peak_memory_mib
        row = [
            (self.by, Cell(group.name, group.name)),
            ("seeds", Cell(self._seeds(group), len(group.seeds))),
            (self.mean_heading(), Cell(format_metric(metric, group.mean), group.mean)),
            ("95 % interval", Cell(self._spread(group.half_width), group.half_width)),
            ("std", Cell(format_spread(metric, group.std), group.std)),
            (_OWN, Cell(format_metric(metric, group.own_mean), group.own_mean)),
        ]
        if self.reference:
            ends, p = (d.bootstrap, d.p_holm) if d else (None, None)
            bracket = f"[{', '.join(signed(metric, end) for end in ends)}]" if ends else "–"
            word = group.verdict.word if group.verdict else None
            minus = Cell(self._signed(d, len(group.seeds)), d.mean if d else None)
            row += [
                (f"minus {self.reference}", minus),
                (_OF_IMAGES[0], Cell(bracket, ends[0] if ends else None)),
                (_OF_IMAGES[1], Cell(format_p(p), p)),
                (_VERDICT, Cell(word or "–", word)),
            ]
        return [
            *row,
            ("trainable", Cell(_text(group.trainable, ",", ""), group.trainable)),
            ("fit", Cell(_text(group.fit_seconds, ",.0f", " s"), group.fit_seconds)),
            ("peak memory", Cell(_text(memory, ",.0f", " MiB"), memory)),
        ]

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Headings and rows as text, for any kind of table."""
        heads, rows = self.table()
        return heads, [[cell.text for cell in row] for row in rows]

    def render(self, *, told: Collection[str] = ()) -> Table:
        """The table for a terminal, with differences in a second one and notes below.

        Notes in `told` were printed with another table and are not repeated.
        """
        heads, rows = self.cells()
        minus = f"minus {self.reference}"
        apart = [heads.index(h) for h in (minus, *_OF_IMAGES, _VERDICT) if h in heads]
        page = Table.grid()
        page.add_row(f"[bold]{literal(self.heading())}[/bold]")
        page.add_row(f"{literal(self.headline())}\n")
        hidden = [*apart, *(k for k, head in enumerate(heads) if head == _OWN)]  # a note has it
        page.add_row(self._part([k for k in range(len(heads)) if k not in hidden], rows))
        page.add_row("")
        if apart:
            compared = [row for row in rows[: len(self.groups)] if row[0] != self.reference]
            page.add_row(self._part([0, *apart], compared))
            page.add_row("")
        for sentence in self.verdicts():
            page.add_row(_bullet(f"[bold]{literal(sentence)}[/bold]"))
        if self.verdicts():
            page.add_row("")
        for note in self.notes:
            if note not in told:
                page.add_row(_bullet(literal(note)))
        return page

    def _part(self, columns: Sequence[int], rows: Sequence[Sequence[str]]) -> Table:
        heads, _ = self.cells()
        return terminal_table(
            [heads[place] for place in columns],
            [[row[place] for place in columns] for row in rows],
            whole=(0,), dim=range(len(self.groups), len(rows)),
        )  # fmt: skip

    def to_markdown(self) -> str:
        """A section with heading, table, verdicts, notes, settings and answers."""
        heads, rows = self.cells()
        lines = [f"## {in_markdown(self.heading())}", "", in_markdown(self.headline()), ""]
        lines += markdown_table(heads, rows)
        if self.verdicts():
            lines += ["", *(f"- **{in_markdown(sentence)}**" for sentence in self.verdicts())]
        if self.notes:
            lines += ["", *(f"- {in_markdown(note)}" for note in self.notes)]
        for title, note, heads, rows, left in self.details():
            table = markdown_table(heads, rows, left=left)
            lines += ["", f"### {in_markdown(title)}", "", in_markdown(note), "", *table]
        return "\n".join(lines) + "\n"

    def details(self) -> list[Detail]:
        """Tables below the first one: settings, classes, confusions, images that differ."""
        found = []
        if self.settings:
            names = [group.name for group in self.groups]
            rows = [[key, *values] for key, values in self.settings]
            note = "Only settings that differ; – if a strategy has no such setting."
            heads = ["setting", *names]
            found.append(Detail("Differences of settings", note, heads, rows, len(heads)))
        if self.answers is not None:
            found += [
                _class_detail(self.answers),
                *_confusion_detail(self.answers),
                *map(_pair_detail, self.answers.pairs),
            ]
        return found

    def records(self) -> Iterator[dict[str, Any]]:
        """One record per row for CSV: plain numbers, rates in [0, 1], empty for no value."""
        common = {"title": self.title, "metric": self.metric}
        for group in self.groups:
            low, high = bounds(group.mean, group.half_width)
            d = group.difference
            d_low, d_high = bounds(d.mean, d.half_width) if d else (None, None)
            yield common | {
                self.by: group.name,
                "n": len(group.seeds),
                "seeds": " ".join(map(str, group.seeds)),
                "values": " ".join(map(repr, group.values)),
                "mean_seeds": " ".join(map(str, self.common_seeds or group.seeds)),
                "mean": group.mean,
                "std": group.std,
                "ci95_low": low,
                "ci95_high": high,
                "reference": self.reference if d else None,
                "difference_n": d.n if d else None,
                "difference": d.mean if d else None,
                "difference_ci95_low": d_low,
                "difference_ci95_high": d_high,
                "bootstrap95_low": d.bootstrap[0] if d and d.bootstrap else None,
                "bootstrap95_high": d.bootstrap[1] if d and d.bootstrap else None,
                "images": d.images if d else None,
                "p": d.p if d else None,
                "p_holm": d.p_holm if d else None,
                "verdict": group.verdict.word if group.verdict else None,
                "seeds_needed": group.verdict.seeds_needed if group.verdict else None,
                "images_needed": group.verdict.images_needed if group.verdict else None,
                "mean_of_all_seeds": group.mean if group.own_mean is None else group.own_mean,
                "trainable": group.trainable,
                "percent": group.percent,
                "fit_seconds": group.fit_seconds,
                "peak_memory_mib": group.peak_memory_mib,
                "runs": " ".join(map(str, group.folders)),
            }
        for _, name, value in self.baseline_rows():
            yield common | {self.by: name, "mean": value}

    def _spread(self, half_width: float | None) -> str:
        return "–" if half_width is None else f"± {format_spread(self.metric, half_width)}"

    def _signed(self, d: Difference | None, n: int) -> str:
        if d is None:
            return "–"
        on = "" if d.n == n else f" (n={d.n})"
        spread = "" if d.half_width is None else f" {self._spread(d.half_width)}"
        return f"{signed(self.metric, d.mean)}{spread}{on}"

    def _seeds(self, group: Group) -> str:
        if not self.common_seeds or len(self.common_seeds) == len(group.seeds):
            return f"{len(group.seeds)}"
        return f"{len(self.common_seeds)} of {len(group.seeds)}"


_CLASSES, _IMAGES = 30, 20  # most rows of a displayed table; the CSV files have all


def _class_detail(answers: Answers) -> Detail:
    rows = answers.classes
    seeds = "the common seeds" if answers.on_common_seeds else "the strategy's own seeds"
    note = f"Share of the test images of each class that were right, mean over {seeds}."
    if len(rows) > _CLASSES:
        rows = tuple(sorted(rows, key=lambda row: -row.spread)[:_CLASSES])
        note += (
            f" The {_CLASSES} classes with the largest differences; classes.csv has all "
            f"{len(answers.classes)}."
        )
    table = [
        [row.name, f"{row.images}", *(_share(row.shares[name]) for name in answers.groups)]
        for row in rows
    ]
    return Detail("Accuracy by class", note, ["class", "images", *answers.groups], table)


def _confusion_detail(answers: Answers) -> list[Detail]:
    if not answers.confusions:
        return []
    table = [
        [f"{c.truth} → {c.answer}", f"{c.images}", *(_share(c.shares[n]) for n in answers.groups)]
        for c in answers.confusions
    ]
    note = "Share of the images of the true class that was taken for the other one."
    heads = ["true → answer", "images", *answers.groups]
    return [Detail("Most frequent confusions", note, heads, table)]


def _pair_detail(pair: Pair) -> Detail:
    seeds = "on the common seed" if pair.seeds == 1 else f"means over {pair.seeds} common seeds"
    number = "{:.0f}" if pair.seeds == 1 else "{:.1f}"
    counts = [pair.both_right, pair.only_right, pair.only_other_right, pair.both_wrong]
    both, mine, theirs, none = map(number.format, counts)
    note = (
        f"Test images ({seeds}): both right {both}, only {pair.name} right {mine}, only "
        f"{pair.other} right {theirs}, both wrong {none}."
    )
    shown = pair.differing[:_IMAGES]
    if len(pair.differing) > len(shown):
        note += (
            f" Below are the {len(shown)} clearest of {len(pair.differing):,} images with "
            "different answers; differing_images.csv has all."
        )

    def said(answer: str, right: int) -> str:
        return f"{answer} ({right} of {pair.seeds} right)" if pair.seeds > 1 else answer

    rows = [
        [
            f"{image.index}", image.truth, said(image.answer, image.right),
            said(image.reference_answer, image.reference_right),
        ]
        for image in shown
    ]  # fmt: skip
    heads = ["index", "truth", pair.name, pair.other]
    title = f"Images on which {pair.name} and {pair.other} differ"
    return Detail(title, note, heads, rows, len(heads))


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def to_csv(comparisons: Iterable[Comparison]) -> str:
    """All comparisons as one CSV, one line per row of their tables."""
    records = [record for comparison in comparisons for record in comparison.records()]
    return csv_text(records, list(dict.fromkeys(name for record in records for name in record)))


def to_latex(comparisons: Iterable[Comparison]) -> str:
    """Every comparison as a table of its own, with its notes below it."""
    tables = [
        latex_table(
            f"{one.heading()}. {one.headline()}.", *one.cells(), one.notes, groups=len(one.groups)
        )
        for one in comparisons
    ]
    return "% Needs \\usepackage{booktabs} in the preamble.\n" + "\n".join(tables)


def _text(value: float | None, form: str, unit: str) -> str:
    return "–" if value is None else f"{value:{form}}{unit}"


def bounds(mean: float, half_width: float | None) -> tuple[float | None, float | None]:
    """The ends of an interval; None for one seed."""
    return (None, None) if half_width is None else (mean - half_width, mean + half_width)
