"""Many runs side by side: mean and interval over seeds, paired differences, honest refusals.

The interval is Student's t over seeds: it speaks of the spread between seeds (initial weights,
order, few-shot subset) on this test set, not of other test images.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kora.comparison import Comparison, Difference, Group, to_csv
from kora.formats import is_rate
from kora.mixture import refuse_mixture
from kora.results import Run, write_atomically
from kora.selection import load_runs, newest

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Comparison", "Difference", "Group", "compare", "compare_command", "load_runs"]

_GROUPINGS = ("strategy", "experiment")
_DEFAULT_METRICS = ("test/accuracy", "test/rmse_m")  # of classification, of depth


def compare(
    runs: Sequence[Run],
    *,
    metric: str | None = None,
    by: str = "strategy",
    reference: str = "LinearProbe",
) -> Comparison:
    """Compare runs on one metric, a group for each value of `by`.

    Without a metric it is the one that stands for their task: test/accuracy, or test/rmse_m.
    Differences refer to the group `reference`. Of several versions of one group and seed the
    newest counts; a note says so.

    Raises:
        ValueError: no run, an unknown grouping or metric, or runs that must not be mixed: of
            different protocols, backbones or stages, or of different settings in one group.
    """
    if by not in _GROUPINGS:
        raise ValueError(f"by is {by!r}; use {' or '.join(_GROUPINGS)}.")
    if not runs:
        raise ValueError("There is no run to compare.")
    runs, notes = newest(runs, by)
    refuse_mixture(runs, by)
    known = sorted({name for run in runs for name in run.result.metrics})
    if metric is None:
        metric = next((name for name in _DEFAULT_METRICS if name in known), None)
        if metric is None:
            raise ValueError(
                f"No run has {' or '.join(_DEFAULT_METRICS)}; they have: {', '.join(known)}. "
                "Name the metric to compare with --metric."
            )
    measured = [run for run in runs if metric in run.result.metrics]
    if not measured:
        raise ValueError(f"No run has the metric {metric!r}; they have: {', '.join(known)}.")
    notes += [
        f"{run.folder}: has no {metric}; left out."
        for run in runs
        if metric not in run.result.metrics
    ]
    grouped: dict[str, list[Run]] = {}
    for run in measured:
        grouped.setdefault(getattr(run.result, by), []).append(run)
    paired_with = {r.result.seed: r.result.metrics[metric] for r in grouped.get(reference, [])}
    groups = [
        _group(name, members, metric, {} if name == reference else paired_with)
        for name, members in grouped.items()
    ]
    groups.sort(key=lambda group: group.mean, reverse=is_rate(metric))
    compared = len(groups) > 1 and reference in grouped
    if any(group.half_width is not None for group in groups):
        unit = ", in percentage points" if is_rate(metric) else ""
        paired = f"; differences are paired on common seeds{unit}" if compared else unit
        notes.insert(0, f"Intervals are 95 % t-intervals over seeds{paired}.")
    single = [group.name for group in groups if len(group.seeds) == 1]
    if single:
        notes.append(
            f"One seed only: {', '.join(single)}. There is no interval (–), and a difference may "
            "be chance; run more seeds."
        )
    first = measured[0].result
    names = sorted({run.result.experiment for run in measured})
    return Comparison(
        title=", ".join(names) + ("" if first.stage == "fit" else f" ({first.stage} only)"),
        metric=metric,
        by=by,
        groups=tuple(groups),
        baselines=_baselines(measured, metric),
        reference=reference if compared else None,
        protocol=first.protocol,
        backbone=str(first.backbone.get("name", "")),
        notes=tuple(notes),
    )


def compare_command(
    paths: Iterable[str | Path],
    metric: str | None = None,
    out: str | Path | None = None,
    *,
    by: str = "strategy",
    console: Console | None = None,
) -> list[Path]:
    """Print a table for each experiment under `paths`; returns the files written.

    Args:
        paths: runs, or folders above runs.
        metric: the metric to compare; None: in each table that of its task.
        out: folder for `compare.md`, `compare.csv` and a picture a table; None writes nothing.
        by: what makes a group, `strategy` or `experiment`.
        console: where to print; None: standard output.

    Raises:
        ValueError: nothing can be compared; names every reason.
    """
    if console is None:
        from rich.console import Console

        console = Console()
    runs, notes = load_runs(paths)
    tables: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        experiment = "" if by == "experiment" else run.result.experiment
        tables.setdefault((experiment, run.result.stage), []).append(run)
    comparisons: list[Comparison] = []
    for members in tables.values():
        try:
            comparisons.append(compare(members, metric=metric, by=by))
        except ValueError as error:
            if len(tables) == 1:
                raise
            notes.append(f"{members[0].result.experiment}: {error}")
    if not comparisons:
        raise ValueError("\n".join(notes))
    for comparison in comparisons:
        console.print(comparison.render())
        console.print()
    for note in notes:
        console.print(note, markup=False, highlight=False)
    if out is None:
        return []
    written = _write_files(Path(out), comparisons, notes)
    for path in written:
        console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
    return written


def _write_files(out: Path, comparisons: Sequence[Comparison], notes: Sequence[str]) -> list[Path]:
    from kora import figures

    sections: list[str] = []
    pictures: list[Path] = []
    for comparison in comparisons:
        # "fewshot (test only)" -> comparison_fewshot_test_only.png
        suffix = "_" + re.sub(r"[^\w.-]+", "_", comparison.title).strip("_")
        name = f"comparison{suffix if len(comparisons) > 1 else ''}.png"
        pictures.append(figures.comparison(comparison, out / name))
        sections += [comparison.to_markdown(), f"![{comparison.title}]({name})\n"]
    if notes:
        sections.append("## Left out\n\n" + "\n".join(f"- {note}" for note in notes) + "\n")
    texts = {"compare.md": "\n".join(sections), "compare.csv": to_csv(comparisons)}
    files = [
        write_atomically(out / name, partial(Path.write_text, data=text, encoding="utf-8"))
        for name, text in texts.items()
    ]
    return files + pictures


def _group(
    name: str, runs: Sequence[Run], metric: str, reference: Mapping[int | None, float]
) -> Group:
    values = {run.result.seed: run.result.metrics[metric] for run in runs}
    paired = [value - reference[seed] for seed, value in values.items() if seed in reference]
    parameters = runs[0].result.parameters
    sample = list(values.values())
    return Group(
        name=name,
        seeds=tuple(values),
        values=tuple(sample),
        mean=statistics.fmean(sample),
        std=statistics.stdev(sample) if len(sample) > 1 else None,
        half_width=_half_width(sample),
        trainable=parameters.get("trainable"),
        percent=parameters.get("percent"),
        fit_seconds=_mean(run.result.seconds.get("fit") for run in runs),
        difference=Difference(len(paired), statistics.fmean(paired), _half_width(paired))
        if paired
        else None,
    )


def _baselines(runs: Sequence[Run], metric: str) -> dict[str, float]:
    """The mean of each kind of baseline over the runs that have it for this metric.

    Baselines are measured where the run was: a test says nothing beside a value of validation.
    """
    stage, _, name = metric.rpartition("/")
    values: dict[str, list[float]] = {}
    for run in runs:
        if stage != ("val" if run.result.stage == "validate" else "test"):
            continue
        for kind, scores in run.result.baselines.items():
            if scores.get(name) is not None:
                values.setdefault(kind, []).append(scores[name])
    return {kind: statistics.fmean(same) for kind, same in values.items()}


def _half_width(sample: Sequence[float]) -> float | None:
    """Half the 95 % t-interval of the mean; None below two values."""
    n = len(sample)
    if n < 2:
        return None
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    return float(stdtrit(n - 1, 0.975)) * statistics.stdev(sample) / math.sqrt(n)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
