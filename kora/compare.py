"""Many runs side by side: mean and interval over seeds, paired differences, honest refusals.

The interval is Student's t over seeds: it speaks of the spread between seeds (initial weights,
order, few-shot subset) on this test set, not of other test images.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kora.comparison import Comparison, Difference, Group, to_csv
from kora.mixture import refuse_mixture
from kora.results import (
    RESULTS_NAME,
    Run,
    find_runs,
    is_rate,
    read_results,
    write_atomically,
)

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Comparison", "Difference", "Group", "compare", "compare_command", "load_runs"]

_GROUPINGS = ("strategy", "experiment")


def compare(
    runs: Sequence[Run],
    *,
    metric: str = "test/accuracy",
    by: str = "strategy",
    baseline: str = "LinearProbe",
) -> Comparison:
    """Compare runs on one metric, a group for each value of `by`.

    Of several versions of one group and seed the newest counts; a note says so.

    Raises:
        ValueError: no run, an unknown grouping or metric, or runs that must not be mixed: of
            different protocols, backbones or stages, or of different settings in one group.
    """
    if by not in _GROUPINGS:
        raise ValueError(f"by is {by!r}; use {' or '.join(_GROUPINGS)}.")
    if not runs:
        raise ValueError("There is no run to compare.")
    runs, notes = _newest(runs, by)
    refuse_mixture(runs, by)
    measured = [run for run in runs if metric in run.result.metrics]
    if not measured:
        known = sorted({name for run in runs for name in run.result.metrics})
        raise ValueError(f"No run has the metric {metric!r}; they have: {', '.join(known)}.")
    notes += [
        f"{run.folder}: has no {metric}; left out."
        for run in runs
        if metric not in run.result.metrics
    ]
    grouped: dict[str, list[Run]] = {}
    for run in measured:
        grouped.setdefault(getattr(run.result, by), []).append(run)
    reference = {run.result.seed: run.result.metrics[metric] for run in grouped.get(baseline, [])}
    groups = [
        _group(name, members, metric, {} if name == baseline else reference)
        for name, members in grouped.items()
    ]
    groups.sort(key=lambda group: group.mean, reverse=is_rate(metric))
    compared = len(groups) > 1 and baseline in grouped
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
    short = metric.rpartition("/")[2]
    first = measured[0].result
    names = sorted({run.result.experiment for run in measured})
    return Comparison(
        title=", ".join(names) + ("" if first.stage == "fit" else f" ({first.stage} only)"),
        metric=metric,
        by=by,
        groups=tuple(groups),
        chance=_mean(run.result.baselines.get("chance", {}).get(short) for run in measured),
        majority=_mean(run.result.baselines.get("majority", {}).get(short) for run in measured),
        baseline=baseline if compared else None,
        protocol=first.protocol,
        backbone=str(first.backbone.get("name", "")),
        notes=tuple(notes),
    )


def load_runs(paths: Iterable[str | Path]) -> tuple[list[Run], list[str]]:
    """All readable, finished runs under `paths`, and a sentence on each that is left out.

    Raises:
        ValueError: nothing is left; names every reason.
    """
    folders: dict[Path, None] = {}
    notes: list[str] = []
    for path in map(Path, paths):
        try:
            folders.update(dict.fromkeys(find_runs([path])))
        except (OSError, ValueError) as error:
            notes.append(str(error))
            continue
        for folder in sorted(path.rglob("version_*")):
            if folder.is_dir() and not (folder / RESULTS_NAME).exists():
                notes.append(f"{folder}: has no {RESULTS_NAME} (unfinished); left out.")
    runs: list[Run] = []
    for folder in folders:
        try:
            run = Run(folder, read_results(folder))
        except (OSError, RuntimeError, ValueError) as error:
            notes.append(str(error))
            continue
        if run.result.finished:
            runs.append(run)
        else:
            notes.append(f"{folder}: was stopped before its planned end; left out.")
    runs = _named_apart(runs)
    if not runs:
        raise ValueError("There is no run to compare.\n" + "\n".join(f"  - {n}" for n in notes))
    return runs, notes


def compare_command(
    paths: Iterable[str | Path],
    metric: str = "test/accuracy",
    out: str | Path | None = None,
    *,
    by: str = "strategy",
    console: Console | None = None,
) -> list[Path]:
    """Print a table for each experiment under `paths`; returns the files written.

    Args:
        paths: runs, or folders above runs.
        metric: the metric to compare.
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


def _named_apart(runs: Sequence[Run]) -> list[Run]:
    """Runs of one strategy with other arguments get other names: `LoRA (sites=[q, v])`."""
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in runs:
        arguments = run.result.settings.get("adapter", {}).get("init_args", {})
        seen = kinds.setdefault((run.result.experiment, run.result.strategy), [])
        if arguments not in seen:
            seen.append(arguments)
    named = []
    for folder, result in runs:
        mine = result.settings.get("adapter", {}).get("init_args", {})
        others = kinds[result.experiment, result.strategy]
        differing = [k for k in mine if any(other.get(k) != mine[k] for other in others)]
        if differing:
            text = ", ".join(f"{key}={_brief(mine[key])}" for key in differing)
            result = replace(result, strategy=f"{result.strategy} ({text})")
        named.append(Run(folder, result))
    return named


def _brief(value: Any) -> str:
    if isinstance(value, dict):  # a composer or a readout
        inner = ", ".join(f"{k}={_brief(v)}" for k, v in value.get("init_args", {}).items())
        return str(value.get("class_path", "")).rpartition(".")[2] + (f"({inner})" if inner else "")
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, list) else str(value)


def _newest(runs: Sequence[Run], by: str) -> tuple[list[Run], list[str]]:
    """The newest run of every group, stage and seed, and a note where there were several."""
    cells: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        r = run.result
        cells.setdefault((getattr(r, by), r.strategy, r.stage, r.seed), []).append(run)
    chosen, notes = [], []
    for (name, _, _, seed), same in cells.items():
        same.sort(key=lambda run: (run.result.created, _version(run.folder)))
        chosen.append(same[-1])
        if len(same) > 1:
            notes.append(
                f"{name}, seed {seed}: {len(same)} versions; {same[-1].folder} is the newest and "
                "the only one used."
            )
    chosen.sort(key=lambda run: -1 if run.result.seed is None else run.result.seed)
    return chosen, notes


def _version(folder: Path) -> int:
    number = folder.name.rpartition("_")[2]
    return int(number) if number.isdecimal() else -1


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
