"""Differences between two groups of runs, paired by seed and, if outcomes exist, by image.

Shapes: S seeds, I images
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kora.analysis.pooled import SCORES, PooledScore, pooled_difference
from kora.analysis.statistics import RESAMPLES, crossed_bootstrap, holm, sign_flip_p, t_half_width
from kora.compare.answers import same_images
from kora.compare.comparison import Group
from kora.compare.verdict import Difference
from kora.runs.outcomes import OUTCOMES_NAME, Outcomes, read_outcomes
from kora.runs.results import Run

__all__ = ["with_differences"]

Read = Callable[[Path], Outcomes | None]

_OTHER_IMAGES = (
    "was tested on other images or labels than the other runs; no bootstrap interval and no "
    "p-value."
)


def with_differences(
    groups: Sequence[Group],
    runs: Mapping[str, Sequence[Run]],
    metric: str,
    reference: str,
    *,
    read: Read = read_outcomes,
) -> tuple[list[Group], list[str]]:
    """Groups with their difference from the group `reference`, and notes on its computation."""
    score = SCORES.get(metric.removeprefix("test/"))
    notes: list[str] = []
    silent: list[Path] = []
    baseline = {run.result.seed: run for run in runs[reference]}
    found: dict[str, Difference] = {}
    for group in groups:
        mine = {run.result.seed: run for run in runs[group.name]}
        seeds = [seed for seed in mine if seed in baseline]
        if group.name == reference or not seeds:
            continue
        values = [_value(mine[seed], metric) - _value(baseline[seed], metric) for seed in seeds]
        difference = Difference(
            len(values),
            statistics.fmean(values),
            t_half_width(values),
            statistics.stdev(values) if len(values) > 1 else None,
        )
        try:
            pairs = [(mine[seed], baseline[seed]) for seed in seeds]
            if score is not None:
                difference = _pooled(difference, pairs, metric, score, read)
            else:
                difference = _by_image(difference, _image_differences(pairs, metric, read))
        except _NoFileError as error:
            silent += [folder for folder in error.folders if folder not in silent]
        except _NotKeptError as reason:
            notes += [str(reason)] if str(reason) not in notes else []
        found[group.name] = difference
    corrected = holm({name: d.p for name, d in found.items() if d.p is not None})
    found |= {name: replace(found[name], p_holm=p) for name, p in corrected.items()}
    if silent:
        more = f" and {len(silent) - 1} more" if len(silent) > 1 else ""
        notes.append(
            f"{silent[0]}{more}: no {OUTCOMES_NAME} (not tested, or written by an earlier version "
            "of kora), so there is no bootstrap interval and no p-value. Run again, with the test, "
            "to have them."
        )
    explained = _explained(list(found.values()), score)
    return (
        [replace(group, difference=found.get(group.name)) for group in groups],
        [*explained, *notes],
    )


class _NotKeptError(Exception):
    """Why there is no difference by image."""


class _NoFileError(Exception):
    """These runs recorded no outcomes of their test images."""

    def __init__(self, folders: list[Path]) -> None:
        super().__init__(folders)
        self.folders = folders


def _kept(pairs: Sequence[tuple[Run, Run]], read: Read) -> dict[Path, Outcomes]:
    """The outcomes of all runs, by folder."""
    kept = {run.folder: _outcomes(run, read) for pair in pairs for run in pair}
    silent = [folder for folder, outcomes in kept.items() if outcomes is None]
    if silent:
        raise _NoFileError(silent)
    return {folder: outcomes for folder, outcomes in kept.items() if outcomes is not None}


def _pooled(
    difference: Difference,
    pairs: Sequence[tuple[Run, Run]],
    metric: str,
    score: PooledScore,
    read: Read,
) -> Difference:
    """With the statistics of a score of all images together."""
    kept = _kept(pairs, read)
    first: Outcomes | None = None
    tables: dict[Path, Any] = {}
    for run in {run.folder: run for pair in pairs for run in pair}.values():
        outcomes = kept[run.folder]
        first = first or outcomes
        table = score.table(outcomes)
        if table is None or not len(table):
            raise _NotKeptError(
                f"{run.folder}: {OUTCOMES_NAME} holds no {score.kept}, so {metric} has no "
                "bootstrap interval and no p-value."
            )
        if not same_images(first, outcomes):
            raise _NotKeptError(f"{run.folder}: {_OTHER_IMAGES}")
        value = score.value(table)
        if not np.isclose(value, _value(run, metric), rtol=1e-5, atol=1e-6):
            raise _NotKeptError(
                f"{run.folder}: {metric} of the {score.kept} in {OUTCOMES_NAME} is {value:.6g}, "
                f"and the run has {_value(run, metric):.6g}: the file is of another test. No "
                "bootstrap interval and no p-value."
            )
        tables[run.folder] = table
    mine, theirs = ([tables[pair[side].folder] for pair in pairs] for side in (0, 1))
    pooled = pooled_difference(mine, theirs, score)
    return replace(
        difference,
        images=len(mine[0]),
        bootstrap=pooled.bootstrap,
        p=pooled.p,
        image_std=pooled.image_std,
    )


def _image_differences(
    pairs: Sequence[tuple[Run, Run]], metric: str, read: Read
) -> NDArray[np.float64]:
    """Outcome of the first minus that of the second run of each pair, (S, I)."""
    kept = _kept(pairs, read)
    first: Outcomes | None = None
    rows = []
    for pair in pairs:
        values = []
        for run in pair:
            outcomes = kept[run.folder]
            mine = outcomes.values(metric)
            if mine is None:
                raise _NotKeptError(
                    f"{metric} is not a mean over the recorded outcomes of test images, so it has "
                    "no bootstrap interval and no p-value."
                )
            mean = float(mine.mean()) if len(mine) else np.nan
            if not np.isclose(mean, _value(run, metric), rtol=1e-5, atol=1e-6):
                raise _NotKeptError(
                    f"{run.folder}: the mean over the images of {OUTCOMES_NAME} is {mean:.6g}, and "
                    f"{metric} is {_value(run, metric):.6g}: it is averaged in another way, or the "
                    "file is of another test. No bootstrap interval and no p-value."
                )
            first = first or outcomes
            if not same_images(first, outcomes):
                raise _NotKeptError(f"{run.folder}: {_OTHER_IMAGES}")
            values.append(mine)
        rows.append(values[0] - values[1])
    return np.stack(rows)


def _outcomes(run: Run, read: Read) -> Outcomes | None:
    try:
        return read(run.folder)
    except (OSError, RuntimeError, ValueError) as error:
        raise _NotKeptError(f"{error} No bootstrap interval and no p-value until then.") from error


def _by_image(difference: Difference, difference_SI: NDArray[np.float64]) -> Difference:
    mean_I = difference_SI.mean(axis=0)
    return replace(
        difference,
        images=len(mean_I),
        bootstrap=crossed_bootstrap(difference_SI),
        p=sign_flip_p(mean_I),
        image_std=float(mean_I.std(ddof=1)) if len(mean_I) > 1 else None,
    )


def _explained(differences: Sequence[Difference], score: PooledScore | None) -> list[str]:
    tested = [d for d in differences if d.p is not None]
    if not tested:
        return []
    notes = []
    draws = RESAMPLES if score is None else score.resamples
    if any(d.bootstrap for d in tested):
        notes.append(
            f"Bootstrap: 95 % percentile interval of the difference over {draws:,} draws of "
            f"seeds and of the {tested[0].images:,} test images, each drawn anew (crossed)."
            + (" With one common seed, of images alone." if any(d.n == 1 for d in tested) else "")
        )
    number = f"for {len(tested)} comparisons" if len(tested) > 1 else "for 1 comparison"
    how = (
        "the two models are exchanged on random images, with all common seeds"
        if score is not None
        else "in each image the sign of the difference, averaged over common seeds, is flipped"
    )
    notes.append(
        f"p: two-sided; {how}; corrected after Holm {number}. It is about these trained models on "
        "other images, not about other seeds."
    )
    return notes


def _value(run: Run, metric: str) -> float:
    return run.result.metrics[metric]
