"""Draw the refined KoRA beside LoRA at every number of images, from the tables of docs/RESULTS.md.

    python docs/refined_pictures.py

The tables came from several machines, so time is shown as a share of LoRA's in the same table,
which was trained on the same one. With the runs themselves at hand, `kora compare` draws the like:
see configs/grids/refine_ti100_cpu.yaml.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kora.canvas import GREY, PERCENT, level_style, save
from kora.figures_against import Point, draw_lines

__all__ = ["Row", "describe", "draw", "read_tables"]

HERE = Path(__file__).parent
SECTION = "## The refined KoRA and LoRA after equal searches, on real photographs"
#: Images a class of a table, by how the paragraph before it begins.
SIZES = {
    "One image a class": 1,
    "Five images a class": 5,
    "Twenty images a class": 20,
    "Ninety-five images a class": 95,
}
CLASSES = 100


class Row(NamedTuple):
    """What a table has of one strategy, mean and interval as shares of 1."""

    name: str
    mean: float
    half_width: float
    fit_seconds: float


def read_tables(results: str) -> dict[int, list[Row]]:
    """The first table behind each paragraph of `SIZES` in docs/RESULTS.md, by images a class.

    Raises:
        ValueError: there is no such section, paragraph, table or column.
    """
    if SECTION not in results:
        raise ValueError(f'docs/RESULTS.md has no section "{SECTION}". Name it in SECTION here.')
    section = results.partition(SECTION)[2].partition("\n## ")[0]
    found = {}
    for start, size in SIZES.items():
        _, paragraph, rest = section.partition(f"\n{start}")
        if not paragraph or "\n|" not in rest:
            raise ValueError(
                f'docs/RESULTS.md has no table behind "{start}". Name it in SIZES here.'
            )
        lines = rest[rest.index("\n|") + 1 :].partition("\n\n")[0].splitlines()
        heads, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        missing = {"strategy", "mean", "95 % interval", "fit"} - set(heads)
        if missing:
            raise ValueError(f'The table behind "{start}" has no {sorted(missing)}: {heads}.')
        found[size] = [_row(dict(zip(heads, row, strict=True))) for row in rows]
    return found


def draw(tables: dict[int, list[Row]], folder: Path) -> list[Path]:
    """Accuracy over training images, and over training time as a share of LoRA's.

    Of the strategies that stand in more than one table.
    """
    times = Counter(row.name for rows in tables.values() for row in rows)
    shown = {size: [row for row in rows if times[row.name] > 1] for size, rows in tables.items()}
    of_strategy: dict[str, list[Point]] = {}
    of_size: dict[str, list[Point]] = {}
    for size, rows in shown.items():
        (lora_seconds,) = (row.fit_seconds for row in rows if row.name == "LoRA")
        for row in rows:
            of_strategy.setdefault(row.name, []).append(Point(size * CLASSES, *row[1:3]))
            share = Point(row.fit_seconds / lora_seconds, *row[1:3])
            of_size.setdefault(f"{size} a class", []).append(share)
    over_images, _ = _figure(of_strategy, f"training images of {CLASSES} classes")
    over_time, axis = _figure(of_size, "training time, as a share of LoRA's with as many images")
    axis.axvline(0.05, color=GREY, ls="--", lw=1, label="a twentieth of LoRA's time")
    axis.xaxis.set_major_formatter(PERCENT)
    for row, point in zip(shown[max(shown)], of_size[f"{max(shown)} a class"], strict=True):
        axis.annotate(
            row.name, point[:2], (0, -14 if row.name == "LoRA" else 8), textcoords="offset points",
            fontsize=7, color=GREY, ha="right" if point.x > 0.5 else "center",
        )  # fmt: skip
    written, description = [], describe(tables)
    for figure, name in ((over_images, "images"), (over_time, "time")):
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        path = folder / f"refined_against_{name}.png"
        written.append(save(figure, path, description=description))
    return written


def describe(tables: dict[int, list[Row]]) -> str:
    """What a picture of these tables says of itself: all that it was drawn from."""
    lines = (f"{size} a class: {tuple(row)}" for size, rows in tables.items() for row in rows)
    return "\n".join(lines)


def _figure(lines: dict[str, list[Point]], over: str) -> tuple[Figure, Axes]:
    title = f"The last {CLASSES} classes of Tiny ImageNet, ViT-S/14 at 70 pixels"
    figure, axis = draw_lines(lines, metric="test/accuracy", over=over, title=title)
    style, colour = level_style("chance")
    axis.axhline(1 / CLASSES, color=colour, ls=style, lw=1.4, label="chance, majority class")
    return figure, axis


def _row(cells: dict[str, str]) -> Row:
    seconds = float(cells["fit"].removesuffix(" s").replace(",", ""))
    mean, half_width = (float(cells[head].strip("± %")) / 100 for head in ("mean", "95 % interval"))
    return Row(cells["strategy"].rpartition(": ")[2], mean, half_width, seconds)


if __name__ == "__main__":
    try:
        tables = read_tables((HERE / "RESULTS.md").read_text(encoding="utf-8"))
    except ValueError as mistake:
        sys.exit(f"refined_pictures.py: {mistake}")
    for path in draw(tables, HERE / "images"):
        print(path)
