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

from kora.analysis.statistics import Lead, lead
from kora.console.tables import csv_text, markdown_table
from kora.reports.canvas import BLUE, GREY, new_figure, save
from kora.runs.durable import write_text
from kora.runs.results import find_runs, read_results

__all__ = ["PAIRS", "Measured", "draw", "measured", "read", "table", "worth"]

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
    "feedback of tokens": (
        "composition_feedback/KoRA-over-LoRA-spatial-feedback-tokens",
        "composition_feedback_deaf/KoRA-over-LoRA-spatial-feedback-tokens",
    ),
    "feedback of tokens, loud twin": (
        "composition_feedback/KoRA-over-LoRA-spatial-feedback-tokens",
        "composition_feedback_deaf_loud/KoRA-over-LoRA-spatial-feedback-tokens",
    ),
}  # fmt: skip
_SCORES = ("test/accuracy", "test/miou", "best_val/accuracy", "best_val/miou")
_COLUMNS = ("data", "form", "seed", "score", "trainable")


class Measured(NamedTuple):
    """One run: `form` is experiment/strategy, `score` its accuracy or mIoU, tested if it was."""

    data: str
    form: str
    seed: int
    score: float
    trainable: int


def measured(folder: Path, data: str) -> list[Measured]:
    """The finished runs below a folder, without trials and source stages."""
    results = [read_results(path) for path in find_runs([folder])]
    return [
        Measured(
            data, f"{r.experiment}/{r.strategy}", int(r.seed or 0),
            next(r.metrics[name] for name in _SCORES if name in r.metrics),
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


def worth(runs: Sequence[Measured], data: str, form: str, rival: str) -> Lead | None:
    """How far a form is ahead of a rival; None if they have no seed in common."""
    of: dict[str, dict[int, float]] = defaultdict(dict)
    for run in runs:
        if run.data == data:
            of[run.form][run.seed] = run.score
    return lead(of[form], of[rival])


def table(runs: Sequence[Measured], data: str) -> str:
    """Every form of `PAIRS` beside its twin, in Markdown."""
    mean: dict[str, list[float]] = defaultdict(list)
    size: dict[str, int] = {}
    for run in runs:
        if run.data == data:
            mean[run.form].append(100 * run.score)
            size[run.form] = run.trainable
    rows = []
    for name, (form, twin) in PAIRS.items():
        ahead = worth(runs, data, form, twin)
        if ahead is not None:
            rows.append([
                name, f"{fmean(mean[form]):.2f} %", f"{fmean(mean[twin]):.2f} %",
                f"{ahead.mean:+.2f} ± {ahead.half_width:.2f}".replace("-", "−"),
                f"{size[form]:,}", f"{size[twin]:,}",
            ])  # fmt: skip
    head = ["form", "hears others", "deaf twin", "worth, points", "trainable", "of the twin"]
    return "\n".join(markdown_table(head, rows))


def draw(runs: Sequence[Measured], out_png: Path) -> Path:
    """The worth of each form, a column for each data set."""
    sets = list(dict.fromkeys(run.data for run in runs))
    title = "What hearing other adapters is worth: points ahead of the deaf twin"
    figure, axes = new_figure(len(sets), size=(4.4 * len(sets) + 1.6, 3.6), title=title)
    said = []
    for axis, data in zip(axes, sets, strict=True):
        names = [n for n, pair in PAIRS.items() if worth(runs, data, *pair)]
        for row, name in enumerate(reversed(names)):
            ahead = worth(runs, data, *PAIRS[name])
            assert ahead is not None
            axis.errorbar(ahead.mean, row, xerr=ahead.half_width, fmt="o", color=BLUE, capsize=4)
            said.append(f"{data}, {name}: {ahead.mean:.6f} {ahead.half_width:.6f} {ahead.seeds}")
        axis.axvline(0, color=GREY, lw=1)
        axis.set_yticks(range(len(names)), list(reversed(names)))
        axis.set_title(f"{data}: mean and 95 % interval", fontsize=9, color=GREY)
        axis.grid(alpha=0.25, axis="x")
        axis.spines[["top", "right"]].set_visible(False)
    return save(figure, out_png, description="\n".join(said))


def main(arguments: Sequence[str] | None = None) -> None:
    """Read runs or files, print the tables, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, help="a folder of runs, or .csv files")
    parser.add_argument("--data", default="data", help="name of the data set of the runs")
    parser.add_argument("--csv", type=Path, help="keep the values of each seed here")
    parser.add_argument("--out", type=Path, help="draw the differences here")
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


if __name__ == "__main__":
    main()
