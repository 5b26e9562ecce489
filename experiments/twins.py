"""What communication is worth: each form against its deaf twin, paired by seed.

    python -m experiments.twins runs/composition_cifar10 --data CIFAR-10 --csv FILE.csv
    python -m experiments.twins docs/research/composition_scenes.csv --out PICTURE.png

The first command keeps the values of each seed; both print the table.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from kora.analysis.statistics import Lead, lead, t_half_width
from kora.console.tables import csv_text, markdown_table
from kora.reports.canvas import BLUE, GREEN, GREY, ORANGE, RED, new_figure, save
from kora.runs.durable import write_text
from kora.runs.results import find_runs, read_results

__all__ = ["PAIRS", "Measured", "Worth", "draw", "draw_sizes", "measured", "read", "table", "worth"]

#: A form, and its twin, which differs in communication alone; each as experiment/strategy.
PAIRS = {
    "modulation, per image": (
        "composition/LoRA-modulated-image", "composition/LoRA-modulated-image-own"
    ),
    "modulation, per token": (
        "composition/LoRA-modulated-token", "composition/LoRA-modulated-token-own"
    ),
    "routing": (
        "composition/LoRA-routed-image", "composition/LoRA-routed-image-own"
    ),
    "sharing": (
        "composition/LoRA-shared-image", "composition/LoRA-shared-image-own"
    ),
    "sharing, over fixed scales": (
        "composition/LoRA-shared-image", "composition/LoRA-shared-image-nothing"
    ),
    "chain": (
        "composition_residual/KoRA-over-LoRA", "composition_residual_deaf/KoRA-over-LoRA"
    ),
    "attention over depth": (
        "composition_attention/KoRA-over-LoRA", "composition/KoRA-over-LoRA"
    ),
    "feedback": (
        "composition_feedback/KoRA-over-LoRA-feedback",
        "composition_feedback_deaf/KoRA-over-LoRA-feedback",
    ),
    "chain to the queries": (
        "composition_residual/KoRA-over-LoRA-queries",
        "composition_residual_deaf/KoRA-over-LoRA-queries",
    ),
    "levels of a DPT": (
        "composition/KoRA-over-LoRA-spatial-tokens-DPT",
        "composition_deaf/KoRA-over-LoRA-spatial-tokens-DPT",
    ),
    "feedback of tokens": (
        "composition_feedback/KoRA-over-LoRA-spatial-feedback-tokens",
        "composition_feedback_deaf/KoRA-over-LoRA-spatial-feedback-tokens",
    ),
    "feedback of tokens, loud twin": (
        "composition_feedback/KoRA-over-LoRA-spatial-feedback-tokens",
        "composition_feedback_deaf_loud/KoRA-over-LoRA-spatial-feedback-tokens",
    ),
}  # fmt: skip
#: What judges a run, the first that it has, and the sign that makes more better.
_SCORES = {
    "test/accuracy": 1, "test/miou": 1, "test/map": 1, "test/rmse_m": -1,
    "best_val/accuracy": 1, "best_val/miou": 1,
}  # fmt: skip
_DROPPED_BELOW = 0.5  # points: the stop rule
_SHOWN = (-3.0, 5.0)  # points, in the picture
_SIZES = {
    "composition/LoRA": ("LoRA", ORANGE, "s"),
    "composition/BitFit": ("BitFit", GREY, "^"),
    "composition/LoRA-shared-image": ("shared weights, hears others", BLUE, "o"),
    "composition/LoRA-shared-image-nothing": ("shared weights, fixed scales", RED, "v"),
    "composition/LoRA-shared-image-own": ("shared weights, deaf twin", GREEN, "D"),
}
_COLUMNS = ("data", "form", "seed", "score", "trainable")


class Measured(NamedTuple):
    """One run, tested if it was: `form` is experiment/strategy.

    `score` is its accuracy, mIoU or mAP, or minus its RMSE in metres: more is better.
    """

    data: str
    form: str
    seed: int
    score: float
    trainable: int


class Worth(NamedTuple):
    """A form against its twin: the lead, both means in points, and both numbers of parameters."""

    ahead: Lead
    mine: float
    twins: float
    size: int
    twins_size: int


def measured(folder: Path, data: str) -> list[Measured]:
    """The finished runs below a folder, without trials and source stages."""
    results = [read_results(path) for path in find_runs([folder])]
    return [
        Measured(
            data, f"{r.experiment}/{r.strategy}", int(r.seed or 0),
            next(sign * r.metrics[name] for name, sign in _SCORES.items() if name in r.metrics),
            int(r.parameters["trainable"]),
        )
        for r in results
        if r.finished and not r.experiment.endswith(("_tune", "_source"))
    ]  # fmt: skip


def read(paths: Iterable[Path]) -> list[Measured]:
    """What `--csv` wrote."""
    found = []
    for path in paths:
        with path.open(encoding="utf-8", newline="") as file:
            found += [
                Measured(
                    row["data"], row["form"], int(row["seed"]), float(row["score"]),
                    int(row["trainable"]),
                )
                for row in csv.DictReader(file)
            ]  # fmt: skip
    return found


def worth(runs: Iterable[Measured], data: str, form: str, rival: str) -> list[Worth]:
    """How far a form is ahead of a rival, once for each size of the form, smallest first.

    A form of the k-th size meets the rival of the k-th size. Sizes without a common seed are left
    out.
    """
    of: dict[str, dict[int, dict[int, float]]] = {form: defaultdict(dict), rival: defaultdict(dict)}
    for run in runs:
        if run.data == data and run.form in of:
            of[run.form][run.trainable][run.seed] = run.score
    found = []
    for own, other in zip(sorted(of[form]), sorted(of[rival]), strict=False):
        mine, theirs = of[form][own], of[rival][other]
        ahead = lead(mine, theirs)
        if ahead is not None:
            my_mean, their_mean = (100 * fmean(scores.values()) for scores in (mine, theirs))
            found.append(Worth(ahead, my_mean, their_mean, own, other))
    return found


def table(runs: Sequence[Measured], data: str) -> str:
    """Every form of `PAIRS` beside its twin, in Markdown."""
    rows = [
        [
            name, _said(one.mine), _said(one.twins),
            f"{one.ahead.mean:+.2f} ± {one.ahead.half_width:.2f}".replace("-", "−"),
            f"{one.size:,}", f"{one.twins_size:,}",
        ]
        for name, pair in PAIRS.items()
        for one in worth(runs, data, *pair)
    ]  # fmt: skip
    head = ["form", "hears others", "deaf twin", "worth, points", "trainable", "of the twin"]
    return "\n".join(markdown_table(head, rows))


def _said(score: float) -> str:
    """Percent, or centimetres of an error."""
    return f"{score:.2f} %" if score >= 0 else f"{-score:.2f} cm"


def draw(runs: Sequence[Measured], out_png: Path) -> Path:
    """The worth of each form, a row each, by data set."""
    rows: list[tuple[str, Lead | None]] = []  # None: the heading of a data set
    for data in dict.fromkeys(run.data for run in runs):
        rows.append((data, None))
        for name, pair in PAIRS.items():
            found = worth(runs, data, *pair)
            several = len(found) > 1
            rows += [
                (f"{name}, {one.size:,} parameters" if several else name, one.ahead)
                for one in found
            ]
    title = "How far hearing others is ahead of the deaf twin (or fixed scales), 95 % intervals"
    figure, (axis,) = new_figure(1, size=(7.6, 0.2 * len(rows) + 1.2), title=title)
    said, data = [], ""
    for row, (name, ahead) in enumerate(rows):
        if ahead is None:
            data = name
            continue
        axis.errorbar(ahead.mean, row, xerr=ahead.half_width, fmt="o", color=BLUE, capsize=3, ms=4)
        for edge, sign, marker in zip(_SHOWN, (-1, 1), "<>", strict=True):
            if sign * (ahead.mean - edge) + (ahead.half_width or 0) > 0:  # the interval goes on
                axis.plot(edge, row, marker, color=BLUE, ms=6, clip_on=False)
        said.append(f"{data}, {name}: {ahead.mean:.6f} {ahead.half_width:.6f} {ahead.seeds}")
    for place in (-_DROPPED_BELOW, 0, _DROPPED_BELOW):
        axis.axvline(place, color=GREY, lw=1, ls=":" if place else "-")
    axis.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
    for label, (_, ahead) in zip(axis.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if ahead is None else "normal")
    axis.set(ylim=(len(rows) - 0.5, -0.5), xlim=_SHOWN, xlabel="points (cm for depth)")
    axis.tick_params(axis="y", length=0)
    axis.grid(alpha=0.25, axis="x")
    axis.spines[["top", "right", "left"]].set_visible(False)
    return save(figure, out_png, description="\n".join(said))


def draw_sizes(runs: Sequence[Measured], out_png: Path) -> Path:
    """The score of each form over its trainable parameters, with 95 % intervals over seeds.

    Forms are shifted a little to the right of each other, so that no interval hides another.
    """
    of: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        of[run.form][run.trainable].append(100 * run.score)
    title = "Accuracy over trainable parameters, with 95 % intervals of each form alone"
    figure, (axis,) = new_figure(1, size=(7.2, 4), title=title)
    said = []
    for number, (form, (name, color, marker)) in enumerate(_SIZES.items()):
        sizes = sorted(of[form])
        means = [fmean(of[form][size]) for size in sizes]
        halves = [t_half_width(of[form][size]) or 0.0 for size in sizes]
        shifted = [size * 1.04**number for size in sizes]
        axis.errorbar(
            shifted, means, yerr=halves, fmt=f"-{marker}", color=color, label=name, capsize=3, ms=5
        )
        said += [f"{name}, {size}: {mean:.6f}" for size, mean in zip(sizes, means, strict=True)]
    axis.set(xscale="log", xlabel="trainable parameters", ylabel="accuracy, %")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    return save(figure, out_png, description="\n".join(said))


def main(arguments: Sequence[str] | None = None) -> None:
    """Read runs or files, print the tables, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, help="a folder of runs, or .csv files")
    parser.add_argument("--data", default="data", help="name of the data set of the runs")
    parser.add_argument("--csv", type=Path, help="keep the values of each seed here")
    parser.add_argument("--out", type=Path, help="draw the differences here")
    parser.add_argument("--sizes", type=Path, help="draw accuracy over parameters here")
    asked = parser.parse_args(arguments)
    files = [path for path in asked.paths if path.suffix == ".csv"]
    runs = read(files)
    for folder in asked.paths:
        runs += [] if folder in files else measured(folder, asked.data)
    for data in dict.fromkeys(run.data for run in runs):
        print(f"{data}\n\n{table(runs, data)}\n")
    if asked.csv is not None:
        write_text(asked.csv, csv_text([run._asdict() for run in sorted(runs)], _COLUMNS))
    if asked.out is not None:
        print(draw(runs, asked.out))
    if asked.sizes is not None:
        print(draw_sizes(runs, asked.sizes))


if __name__ == "__main__":
    main()
