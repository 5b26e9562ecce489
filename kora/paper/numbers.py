"""The numbers that the KoRA paper printed, and the runs of this package to compare with each.

All of it is data, in `published.json`: every published number with its source. A number of the
paper is missing there if its source has not been checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["PaperRow", "PaperTable", "Printed", "Selector", "paper_tables"]

_FILE = Path(__file__).parent / "published.json"


@dataclass(frozen=True)
class Printed:
    """A number as it was printed, and where; rates are in [0, 1], per cent are named so."""

    value: str
    source: str


@dataclass(frozen=True)
class Selector:
    """Which honest runs fill a row: a strategy's label, and some of its arguments."""

    strategy: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PaperRow:
    """A row of a table."""

    method: str
    published: Mapping[str, Printed]  # by metric
    in_paper: bool  # whether the paper has this row at all
    config: str | None  # repeats the published protocol; None if there is none
    honest: Selector | None  # None if there are no honest runs
    comparison: str  # for CKA, which comparison of `cka.json` is read

    @property
    def experiment(self) -> str | None:
        """Name of the experiment of `config`."""
        return None if self.config is None else f"paper_{Path(self.config).stem}"


@dataclass(frozen=True)
class PaperTable:
    """A table or figure of the paper."""

    name: str  # as on the command line
    title: str
    #: A metric of results.json, `parameters/percent` or `cka/...`, with its name for readers.
    metrics: Mapping[str, str]
    experiment: str  # of the honest runs
    command: str  # runs all of them
    rows: tuple[PaperRow, ...]
    reasons: tuple[str, ...]  # why published numbers cannot be reproduced, a sentence each


@cache
def paper_tables() -> dict[str, PaperTable]:
    """All tables and figures by name."""
    content = json.loads(_FILE.read_text(encoding="utf-8"))["tables"]
    return {name: _table(name, table) for name, table in content.items()}


def _table(name: str, table: Mapping[str, Any]) -> PaperTable:
    return PaperTable(
        name=name,
        title=table["title"],
        metrics=table["metrics"],
        experiment=table["honest"]["experiment"],
        command=table["honest"]["command"],
        rows=tuple(_row(row) for row in table["rows"]),
        reasons=tuple(table["reasons"]),
    )


def _row(row: Mapping[str, Any]) -> PaperRow:
    config, honest = row.get("as_published"), row.get("honest")
    return PaperRow(
        method=row["method"],
        published={k: Printed(**printed) for k, printed in row.get("published", {}).items()},
        in_paper=row["in_paper"],
        config=None if config is None else f"configs/paper/as_published/{config}.yaml",
        honest=None if honest is None else Selector(**honest),
        comparison=row.get("comparison", "within_run"),
    )
