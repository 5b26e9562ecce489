"""A comparison as one page for the browser, which loads nothing from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from kora import __version__
from kora.comparison import Comparison
from kora.curves import Curve, read_curves
from kora.figures_compare import COLOURS, curve_chart, mark, size_chart
from kora.formats import format_metric

__all__ = ["to_html"]


def to_html(comparisons: Sequence[Comparison], left_out: Sequence[str] = ()) -> str:
    """Each comparison with its sortable table, learning curves and metric against parameters.

    Args:
        comparisons: the tables. Learning curves come from metrics.csv in the folders of their runs;
            without any, that chart is left out.
        left_out: a sentence on each run that is in no table.
    """
    pages = Environment(loader=PackageLoader("kora"), autoescape=True, trim_blocks=True)
    return pages.get_template("compare.html").render(
        title="KoRA: " + ", ".join(dict.fromkeys(c.title for c in comparisons)),
        parts=[_part(comparison) for comparison in comparisons],
        left_out=list(left_out),
        colours=COLOURS,
        version=__version__,
    )


def _part(comparison: Comparison) -> dict[str, Any]:
    heads, rows = comparison.table()
    names = [group.name for group in comparison.groups]
    curve_metric, curves = _curves(comparison)
    in_curves = [name for name in names if curves.get(name)]
    return {
        "heading": comparison.heading(),
        "headline": comparison.headline(),
        "metric": comparison.metric,
        "by": comparison.by,
        "heads": heads,
        "rows": rows,
        "groups": len(names),
        "notes": comparison.notes,
        "size_chart": _svg(size_chart(comparison)),
        "size_words": "The mean of the seeds"
        + (", with its 95 % interval." if any(g.half_width for g in comparison.groups) else "."),
        "curve_chart": _svg(curve_chart(curves, curve_metric, names)),
        "curve_metric": curve_metric,
        "legend": [(Markup(mark(names.index(name))), name) for name in in_curves],
        "runs": [
            (group.name, seed, format_metric(comparison.metric, value), folder)
            for group in comparison.groups
            for seed, value, folder in zip(group.seeds, group.values, group.folders, strict=True)
        ],
    }


def _curves(comparison: Comparison) -> tuple[str, dict[str, list[Curve]]]:
    """The validation's curve of the metric, or else the training loss; by group, one a seed."""
    columns: dict[str, list[dict[str, Curve]]] = {}
    for group in comparison.groups:
        files = [folder / "metrics.csv" for folder in group.folders]
        columns[group.name] = [_readable(file) for file in files if file.is_file()]
    wanted = f"val/{comparison.metric.partition('/')[2]}"
    seen = {name for runs in columns.values() for run in runs for name in run}
    metric = next((name for name in (wanted, "val/loss") if name in seen), "train/loss")
    return metric, {
        name: [run[metric] for run in runs if metric in run] for name, runs in columns.items()
    }


def _readable(file: Any) -> dict[str, Curve]:
    """No curves of a file that is no table of numbers: the record of the run is what counts."""
    try:
        return read_curves(file)
    except (OSError, ValueError):
        return {}


def _svg(text: str | None) -> Markup | None:
    """Made by ourselves, with every name escaped in it."""
    return None if text is None else Markup(text)
