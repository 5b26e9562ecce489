"""`kora compare`: mean and interval over seeds, paired differences, refusal of unlike runs.

The interval is Student's t over seeds. It covers the spread between seeds (initial weights, order,
few-shot subset) on this test set, not other test images.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from rich.console import Console

from kora.analysis.statistics import t_half_width
from kora.compare.answers import answers_of
from kora.compare.comparison import Comparison, Group
from kora.compare.compatibility import refuse_mixture, without_strays
from kora.compare.grouping import grouping
from kora.compare.overview import overview
from kora.compare.pairing import with_differences
from kora.compare.selection import load_runs, newest
from kora.compare.setting_differences import setting_differences, training_note
from kora.compare.verdict import RULE, Difference, verdict
from kora.console.formats import HEADLINES, format_metric, is_better_higher, is_rate
from kora.runs.durable import out_folder
from kora.runs.outcomes import read_outcomes
from kora.runs.results import Run

__all__ = [
    "Comparison",
    "Difference",
    "Group",
    "compare",
    "compare_command",
    "load_runs",
]

_USUAL_REFERENCE = "LinearProbe"
_DEFAULT_METRICS = tuple(f"test/{name}" for name in HEADLINES)


def compare(
    runs: Sequence[Run],
    *,
    metric: str | None = None,
    by: str = "strategy",
    reference: str | None = None,
) -> Comparison:
    """Compare runs on one metric, with a group for each value of `by`.

    The default metric is that of the task: test/accuracy, test/rmse_m, test/miou or test/map.
    Differences are from the group `reference`; None means LinearProbe, if there is one. If a group
    and seed have several versions, the newest counts, and a note says so.

    Raises:
        ValueError: no run; an unknown grouping, metric or reference; or runs that must not be
            mixed: different protocols, backbones or stages, or different settings in one group.
    """
    if not runs:
        raise ValueError("There is no run to compare.")
    group_of = grouping(by, runs)
    runs, notes = newest(runs, group_of)
    refuse_mixture(runs, group_of)
    metric = _metric(runs, metric)
    measured = [run for run in runs if math.isfinite(run.result.metrics.get(metric, math.nan))]
    for run in runs:
        if metric not in run.result.metrics:
            notes.append(f"{run.folder}: has no {metric}; left out.")
        elif not math.isfinite(run.result.metrics[metric]):
            notes.append(f"{run.folder}: its {metric} is not a finite number; left out.")
    if not measured:
        raise ValueError("\n".join(notes))
    grouped: dict[str, list[Run]] = {}
    for run in measured:
        grouped.setdefault(group_of(run), []).append(run)
    if reference is not None and reference not in grouped:
        raise ValueError(
            f"The reference {reference!r} is none of the groups: {', '.join(sorted(grouped))}."
        )
    reference = reference or _USUAL_REFERENCE
    common = _common_seeds(grouped)
    groups = [_group(name, members, metric, common) for name, members in grouped.items()]
    groups.sort(key=lambda group: group.mean, reverse=is_better_higher(metric))
    grouped = {group.name: grouped[group.name] for group in groups}
    compared = len(groups) > 1 and reference in grouped
    explained: list[str] = []
    read = cache(read_outcomes)
    if compared:
        groups, explained = with_differences(groups, grouped, metric, reference, read=read)
        groups = _with_verdicts(groups, grouped, metric, reference)
        explained.append(RULE)
    if any(group.half_width is not None for group in groups):
        unit = ", in percentage points" if is_rate(metric) else ""
        paired = f"; differences are paired on common seeds{unit}" if compared else unit
        explained.insert(0, f"Intervals are 95 % t-intervals over seeds{paired}.")
    if common is not None:
        explained.insert(0, _seeds_note(groups, common, metric))
    trained = training_note(grouped)
    notes = explained + notes + ([trained] if trained else [])
    if len(groups) > 1 and not compared:
        notes.append(f"No differences: there is no {reference}. Name a row with --reference.")
    single = [group.name for group in groups if group.std is None]
    if single:
        who = (
            "Only one seed is common to all rows" if common else f"One seed only: {_listed(single)}"
        )
        notes.append(
            f"{who}. There is no interval (–), and a difference may be chance; run more seeds."
        )
    first = measured[0].result
    return Comparison(
        title=_title(measured),
        metric=metric,
        by=by,
        groups=tuple(groups),
        baselines=_baselines(measured, metric),
        reference=reference if compared else None,
        protocol=first.protocol,
        backbone=str(first.backbone.get("name", "")),
        notes=tuple(notes),
        common_seeds=common,
        settings=tuple(setting_differences(grouped)),
        answers=answers_of(grouped, reference if compared else groups[0].name, read),
    )


def compare_command(
    paths: Iterable[str | Path],
    metric: str | None = None,
    out: str | Path | None = None,
    *,
    by: str = "strategy",
    reference: str | None = None,
    against: Sequence[str] = (),
    notes: Sequence[str] = (),
    console: Console | None = None,
) -> list[Path]:
    """Print a table for each experiment under `paths`, and one over all of them.

    The options are those of `compare`, for each table. Given a folder `out`, writes the files of
    `kora.compare.files` into it and returns them.

    Raises:
        ValueError: nothing can be compared; the message lists every reason.
    """
    folder = None if out is None else out_folder(out)
    runs, more = load_runs(paths)
    console = console or Console()
    notes = [*notes, *more]
    tables: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        experiment = "" if by == "experiment" else run.result.experiment
        tables.setdefault((experiment, run.result.stage), []).append(run)
    comparisons: list[Comparison] = []
    for members in tables.values():
        try:
            agreeing, words = without_strays(members, grouping(by, members))
            comparisons.append(compare(agreeing, metric=metric, by=by, reference=reference))
            notes += words
        except ValueError as error:
            if len(tables) == 1:
                raise
            notes.append(f"{_title(members)}: {error}")
    if not comparisons:
        raise ValueError("\n".join(notes))
    if against:
        from kora.compare.figures_against import one_metric

        one_metric(comparisons)
    together = overview(comparisons)
    if together is not None:
        console.print(together.render())
        console.print()
    told: set[str] = set()
    for comparison in comparisons:
        console.print(comparison.render(told=told))
        console.print()
        told |= set(comparison.notes)
    for note in notes:
        console.print(note, markup=False, highlight=False)
    if folder is None:
        return []
    from kora.compare.files import write_files

    written = write_files(folder, comparisons, notes, against=against)
    for path in written:
        console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
    return written


def _title(runs: Sequence[Run]) -> str:
    """The experiments of a table, and its stage if that is no training."""
    stage = runs[0].result.stage
    names = sorted({run.result.experiment for run in runs})
    return ", ".join(names) + ("" if stage == "fit" else f" ({stage} only)")


def _metric(runs: Sequence[Run], metric: str | None) -> str:
    """The metric to compare; at least one run has it."""
    known = sorted({name for run in runs for name in run.result.metrics})
    have = f"they have: {', '.join(known)}" if known else "they have no metric"
    if metric is None:
        metric = next((name for name in _DEFAULT_METRICS if name in known), None)
        if metric is None:
            raise ValueError(
                f"No run has {' or '.join(_DEFAULT_METRICS)}; {have}. "
                "Name the metric to compare with --metric."
            )
    if metric not in known:
        raise ValueError(f"No run has the metric {metric!r}; {have}.")
    return metric


def _common_seeds(grouped: Mapping[str, Sequence[Run]]) -> tuple[int | None, ...] | None:
    """The seeds that all groups have; None if all groups have the same seeds."""
    seeds = [[run.result.seed for run in members] for members in grouped.values()]
    if all(set(each) == set(seeds[0]) for each in seeds):
        return None
    return tuple(seed for seed in seeds[0] if all(seed in each for each in seeds))


def _seeds_note(groups: Sequence[Group], common: Sequence[int | None], metric: str) -> str:
    """A note on the seeds that means and order are over."""
    if not common:
        theirs = "; ".join(f"{group.name} {_listed(group.seeds)}" for group in groups)
        return (
            f"The rows share no seed ({theirs}): each mean is over the seeds of its row, so the "
            "order may be due to the seeds. Run the same seeds for all."
        )
    theirs = "; ".join(
        f"{group.name} {_listed(group.seeds)} ({format_metric(metric, group.own_mean)})"
        for group in groups
    )
    return (
        f"Means, intervals and order are over the seeds that all rows have: {_listed(common)}. A "
        "difference is over all seeds that its two rows share. All seeds of each row, with the "
        f"mean over them: {theirs}."
    )


def _listed(items: Sequence[int | str | None]) -> str:
    return ", ".join(map(str, items))


def _with_verdicts(
    groups: Sequence[Group], grouped: Mapping[str, Sequence[Run]], metric: str, reference: str
) -> list[Group]:
    tested = [g for g in groups if g.difference is not None and g.difference.p is not None]
    theirs = {run.result.seed for run in grouped[reference]}
    found = []
    for group in groups:
        if group.difference is not None:
            (first, *_) = (seed for seed in group.seeds if seed in theirs)
            said = verdict(
                group.name, reference, group.difference, metric,
                comparisons=max(len(tested), 1), seed=first,
            )  # fmt: skip
            group = replace(group, verdict=said)
        found.append(group)
    return found


def _group(
    name: str, runs: Sequence[Run], metric: str, common: Sequence[int | None] | None = None
) -> Group:
    """A row; its mean is over the common seeds if groups have different ones."""
    values = [run.result.metrics[metric] for run in runs]
    sample = [run.result.metrics[metric] for run in runs if not common or run.result.seed in common]
    parameters = runs[0].result.parameters
    memory = [r.result.peak_memory_mib for r in runs if r.result.peak_memory_mib is not None]
    return Group(
        name=name,
        seeds=tuple(run.result.seed for run in runs),
        values=tuple(values),
        mean=statistics.fmean(sample),
        std=statistics.stdev(sample) if len(sample) > 1 else None,
        half_width=t_half_width(sample),
        trainable=parameters.get("trainable"),
        percent=parameters.get("percent"),
        fit_seconds=_mean(run.result.seconds.get("fit") for run in runs),
        peak_memory_mib=max(memory, default=None),
        folders=tuple(run.folder for run in runs),
        tested_steps=tuple(run.result.tested_step for run in runs),
        own_mean=statistics.fmean(values) if common else None,
    )


def _baselines(runs: Sequence[Run], metric: str) -> dict[str, float]:
    """The mean of each kind of baseline over the runs that have it for this metric.

    A baseline counts only for metrics of the split on which it was measured.
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


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
