"""`kora paper TABLE`: the tables of the KoRA paper, published numbers next to those of runs."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from kora.compare.comparison import bounds
from kora.compare.selection import load_runs
from kora.console.tables import (
    csv_text,
    in_markdown,
    latex_table,
    literal,
    markdown_table,
    terminal_table,
)
from kora.paper.checks import checks
from kora.paper.numbers import paper_tables
from kora.paper.table import Filled, PaperSheet, paper_sheet
from kora.runs.durable import expand, out_folder, write_text
from kora.runs.results import Run, find_runs

__all__ = ["paper_command", "paper_parser", "sections"]

_RUNS = "runs"


def paper_command(args: Sequence[str]) -> None:
    """Parse the options, read the runs, print the table and remarks on it, and write them.

    Raises:
        ValueError: A folder does not exist, or runs must not be mixed.
        RuntimeError: A record of a run is damaged.
    """
    own = paper_parser().parse_args(args)
    out = None if own.out is None else out_folder(own.out)
    runs, notes = _runs(expand(own.runs), own.runs)
    sheet = paper_sheet(paper_tables()[own.table], runs)
    found = sections(sheet, notes)
    _show(sheet, found)
    if out is not None:
        for path in _write(sheet, found, out):
            print(f"wrote {path}")


def sections(sheet: PaperSheet, notes: Sequence[str] = ()) -> dict[str, list[str]]:
    """The sections below the table, by heading; empty ones are left out."""
    commands = [f"[{place + 1}] {command}" for place, command in enumerate(sheet.commands())]
    parts = {
        "": sheet.legend(),
        "Commands that fill the missing cells": commands,
        "What the numbers give away": checks(sheet),
        "Why published numbers cannot be reproduced": list(sheet.table.reasons),
        "Left out": [*sheet.notes, *notes],
    }
    return {heading: lines for heading, lines in parts.items() if lines}


def paper_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="kora paper",
        description="A table or figure of the KoRA paper: the published numbers, the runs of its "
        "published protocol (configs/paper/as_published), and those of the method on honest splits "
        "(configs/paper), with remarks on them.",
        allow_abbrev=False,
    )
    parser.add_argument("table", choices=sorted(paper_tables()), help="which one")
    parser.add_argument(
        "--runs", default=_RUNS, metavar="DIR", help=f"a folder that holds runs (default: {_RUNS})"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="folder for the table as .md, .tex and .csv (default: none)"
    )
    return parser


def _runs(folder: Path, named: str) -> tuple[list[Run], list[str]]:
    """The finished runs below a folder; having none is no error, as the table says what to run.

    Raises:
        ValueError: A folder that was named does not exist.
    """
    if not folder.is_dir():
        if named == _RUNS:
            return [], [f"There is no folder {_RUNS} here yet."]
        raise ValueError(f"--runs {named}: no such folder. Give a folder that holds runs.")
    try:
        find_runs([folder])
    except ValueError:
        return [], [f"There is no finished run below {named}."]
    return load_runs([folder])


def _show(sheet: PaperSheet, found: dict[str, list[str]]) -> None:
    console = Console()
    console.print(f"[bold]{literal(sheet.table.title)}[/bold]\n")
    cells = sheet.cells()
    before = ["", *(row[0] for row in cells)]
    shown = [[row[0] * (row[0] != one), *row[1:]] for one, row in zip(before, cells, strict=False)]
    console.print(terminal_table(sheet.heads, shown, left=(0, 1)))
    for heading, lines in found.items():
        console.print(f"\n[bold]{literal(heading)}[/bold]" if heading else "")
        dash = "- " if heading else ""
        for line in lines:
            # Commands are to be copied, so they are not wrapped.
            text = line
            if not heading.startswith("Commands"):
                text = textwrap.fill(
                    line, console.width, initial_indent=dash, subsequent_indent=" " * len(dash)
                )
            console.print(text, markup=False, highlight=False, soft_wrap=True)


def _write(sheet: PaperSheet, found: dict[str, list[str]], out: Path) -> list[Path]:
    name = f"paper_{sheet.table.name}"
    below = [line for lines in found.values() for line in lines]
    texts = {
        f"{name}.md": _markdown(sheet, found),
        f"{name}.tex": "% Needs \\usepackage{booktabs} in the preamble.\n"
        + latex_table(sheet.table.title, sheet.heads, sheet.cells(), below, left=2),
        f"{name}.csv": _csv(sheet),
    }
    return [write_text(out / file, text) for file, text in texts.items()]


def _markdown(sheet: PaperSheet, found: dict[str, list[str]]) -> str:
    lines = [f"# {sheet.table.title}", "", *markdown_table(sheet.heads, sheet.cells(), left=2)]
    for heading, sentences in found.items():
        lines += ["", *([f"## {heading}", ""] if heading else [])]
        code = heading.startswith("Commands")
        lines += [
            f"- `{s.partition('] ')[2]}` {s.partition('] ')[0]}]" if code else f"- {in_markdown(s)}"
            for s in sentences
        ]
    return "\n".join(lines) + "\n"


def _csv(sheet: PaperSheet) -> str:
    """Plain numbers, rates in [0, 1]; one line per row and metric."""
    records = []
    for entry in sheet.entries:
        printed = entry.row.published.get(entry.metric)
        record: dict[str, Any] = {
            "table": sheet.table.name,
            "method": entry.row.method,
            "metric": entry.metric,
            "published": None if printed is None else printed.value,
            "source": None if printed is None else printed.source,
        }
        for column, cell in entry.cells.items():
            numbers = {f"{column}_{name}": value for name, value in _numbers(cell).items()}
            record |= numbers | {f"{column}_command": cell.command}
        records.append(record)
    return csv_text(records, list(records[0]))


def _numbers(cell: Filled) -> dict[str, Any]:
    found = cell.measured
    if found is None:
        return dict.fromkeys(("n", "mean", "ci95_low", "ci95_high", "runs"))
    low, high = bounds(found.mean, found.half_width)
    return {
        "n": len(found.values),
        "mean": found.mean,
        "ci95_low": low,
        "ci95_high": high,
        "runs": " ".join(str(run.folder) for run in found.runs),
    }
