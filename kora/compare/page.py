"""A comparison as one self-contained page for the browser.

Links to the pictures of the runs are relative to the page, and followed only on a click.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from markupsafe import Markup
from matplotlib.figure import Figure

from kora.compare.comparison import Comparison
from kora.compare.inline_svg import inline_svg
from kora.compare.overview import overview
from kora.compare.page_charts import Tested, curve_chart, key, size_chart
from kora.console.formats import format_metric
from kora.console.identity import Look, looks
from kora.reports.curves import Curve, read_curves, tested_place
from kora.reports.pages import page_of

__all__ = ["to_html"]


def to_html(
    comparisons: Sequence[Comparison],
    left_out: Sequence[str] = (),
    *,
    beside: str | Path | None = None,
) -> str:
    """A page with each comparison's sortable table, learning curves and metric against parameters.

    Learning curves come from metrics.csv in the folders of the runs; without any, that chart is
    left out. Links to pictures are relative to the folder `beside`; without one, there are none.
    """
    shown = looks(group.name for table in comparisons for group in table.groups)
    return page_of("kora.compare").render(
        title="KoRA: " + ", ".join(dict.fromkeys(c.title for c in comparisons)),
        overview=overview(comparisons),
        looks=shown,
        drawn_keys=[
            _svg(key(look), "", f"key-{look.colour}-{look.marker}")
            for look in dict.fromkeys(shown.values())
        ],
        parts=[_part(*numbered, shown, beside) for numbered in enumerate(comparisons)],
        left_out=list(left_out),
    )


def _part(
    number: int, comparison: Comparison, shown: Mapping[str, Look], beside: str | Path | None
) -> dict[str, Any]:
    heads, rows = comparison.table()
    names = [group.name for group in comparison.groups]
    curves = _curves(comparison)
    return {
        "heading": comparison.heading(),
        "headline": comparison.headline(),
        "metric": comparison.metric,
        "by": comparison.by,
        "heads": heads,
        "rows": rows,
        "groups": len(names),
        "verdicts": [
            (group.name, group.verdict) for group in comparison.groups if group.verdict is not None
        ],
        "notes": comparison.notes,
        "details": comparison.details(),
        "size_chart": _svg(
            size_chart(comparison, shown),
            f"{comparison.metric} against trainable parameters",
            f"sizes-{number}",
        ),
        "curves": [
            (metric, chart, [name for name in names if seeds.get(name)], bool(tested))
            for place, (metric, seeds, tested) in enumerate(curves.charts)
            if (
                chart := _svg(
                    curve_chart(seeds, metric, shown, tested=tested),
                    f"{metric} against optimiser steps",
                    f"curves-{number}-{place}",
                )
            )
        ],
        "guessed": curves.guessed,
        "runs": [
            (
                group.name, seed, format_metric(comparison.metric, value), folder,
                _pictures(folder, beside),
            )
            for group in comparison.groups
            for seed, value, folder in zip(group.seeds, group.values, group.folders, strict=True)
        ],
    }  # fmt: skip


class _Curves(NamedTuple):
    """For each metric the curves of each group's seeds, and the step of the tested weights."""

    charts: list[tuple[str, dict[str, list[Curve]], dict[str, list[Tested]]]]
    guessed: bool  # some record does not say which step was tested


def _curves(comparison: Comparison) -> _Curves:
    """Curves of the metric in validation (or else a loss) with the test, and in training."""
    columns: dict[str, list[dict[str, Curve]]] = {}
    tested: dict[str, list[Tested]] = {}
    name = comparison.metric.partition("/")[2]
    guessed = False
    for group in comparison.groups:
        for folder, value, step in zip(
            group.folders, group.values, group.tested_steps, strict=True
        ):
            file = folder / "metrics.csv"
            found = _readable(file) if file.is_file() else {}
            columns.setdefault(group.name, []).append(found)
            place = tested_place(found, name, step)
            if comparison.metric.startswith("test/") and place is not None:
                tested.setdefault(group.name, []).append((place[0], value))
                guessed = guessed or not place[1]
    seen = {column for runs in columns.values() for run in runs for column in run}
    first = next((m for m in (f"val/{name}", "val/loss") if m in seen), "train/loss")
    wanted = [first, *(m for m in (f"train/{name}",) if m in seen and m != first)]
    charts = []
    for metric in wanted:
        curves = {
            group: [run[metric] for run in runs if metric in run] for group, runs in columns.items()
        }
        charts.append((metric, curves, tested if metric == f"val/{name}" else {}))
    return _Curves(charts, guessed and first == f"val/{name}")


def _pictures(folder: Path, beside: str | Path | None) -> list[tuple[str, str]]:
    """Name and relative address of each picture of a run."""
    if beside is None or not folder.is_dir():
        return []
    return [
        (
            path.stem.replace("_", " "),
            quote(Path(os.path.relpath(path.resolve(), Path(beside).resolve())).as_posix()),
        )
        for path in sorted(folder.glob("*.png"))
    ]


def _readable(file: Path) -> dict[str, Curve]:
    """The curves in a file; none if it is not a table of numbers, as the page can do without."""
    try:
        return read_curves(file)
    except (OSError, ValueError, TypeError, csv.Error):
        return {}


def _svg(figure: Figure | None, title: str, name: str) -> Markup | None:
    """A figure as safe markup: our own SVG, with every name in it escaped."""
    return None if figure is None else Markup(inline_svg(figure, title=title, name=name))
