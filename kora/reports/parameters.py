"""Counts of trainable parameters, by block and site."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.table import Table

from kora.adapters.base import place_of
from kora.tasks import AdapterTask

__all__ = ["ParameterReport", "parameter_report"]


@dataclass(frozen=True)
class ParameterReport:
    """Counts of a built task; `cells` is keyed by (block, site)."""

    strategy: str
    backbone: str
    trainable: int
    total: int
    head: int
    cells: dict[tuple[str, str], int]

    @property
    def percent(self) -> float:
        """Trainable share of all parameters, in per cent, to three decimals."""
        return round(100 * self.trainable / self.total, 3)

    def to_dict(self) -> dict[str, Any]:
        """Plain types: trainable, total, percent, head."""
        return {
            "trainable": self.trainable,
            "total": self.total,
            "percent": self.percent,
            "head": self.head,
        }

    def render(self) -> Group:
        """A table of trainable parameters by block (rows) and site (columns)."""
        sites = list(dict.fromkeys(site for _, site in self.cells))
        blocks = list(dict.fromkeys(block for block, _ in self.cells))
        table = Table()
        blockless = [site for site in sites if ("–", site) in self.cells]
        placed = [site for site in sites if site not in blockless]
        if any(block != "–" for block in blocks):
            table.add_column("block")
            for site in placed:
                table.add_column(site, justify="right")
            for block in blocks:
                if block != "–":
                    counts = (self.cells.get((block, site)) for site in placed)
                    table.add_row(block, *("" if n is None else f"{n:,}" for n in counts))
            table.add_section()
            for site in blockless:
                cells = [""] * max(0, len(placed) - 1)
                table.add_row(site, f"{self.cells['–', site]:,}", *cells)
        else:
            table.add_column("part")
            table.add_column("parameters", justify="right")
            for site in blockless:
                table.add_row(site, f"{self.cells['–', site]:,}")
        return Group(  # rich would break a title or caption at the width of the table
            f"{self.strategy} on {self.backbone}",
            table,
            f"{self.trainable:,} of {self.total:,} parameters train ({self.percent:.3f} %), "
            f"{self.head:,} of them in the head",
        )


def parameter_report(task: AdapterTask) -> ParameterReport:
    """Count the parameters of a built task. Buffers (fixed random projections) do not count."""
    cells: dict[tuple[str, str], int] = defaultdict(int)
    trainables = task.trainables()
    for name, parameter in trainables.items():
        part, _, rest = name.partition(".")
        cell = ("–", "head") if part == "head" else place_of(rest)
        cells[cell] += parameter.numel()
    order = sorted(cells, key=lambda cell: int(cell[0]) if cell[0].isdigit() else 10**6)
    return ParameterReport(
        strategy=task.label,
        backbone=task.backbone.name,
        trainable=_count(trainables.values()),
        total=_count(task.parameters()),
        head=sum(p.numel() for name, p in trainables.items() if name.startswith("head.")),
        cells={cell: cells[cell] for cell in order},
    )


def _count(parameters: Iterable[Any]) -> int:
    return sum(parameter.numel() for parameter in parameters)
