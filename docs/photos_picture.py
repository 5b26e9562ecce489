"""Draw every strategy over the number of images a class, from the values in docs/results.

    python docs/photos_picture.py

The tables came from several sessions, and `kora compare --against images` needs all runs at hand.
"""

from __future__ import annotations

import csv
from pathlib import Path

from kora.canvas import level_style, save
from kora.figures_against import Point, draw_lines

__all__ = ["draw", "read"]

HERE = Path(__file__).parent
SIZES = (1, 5, 20, 95)  # images of each class
CLASSES = 100


def read(folder: Path) -> dict[str, list[Point]]:
    """Mean and half of the 95 % interval of each strategy, by images a class.

    Of `photos_1.csv` and the like, as `kora compare --out` writes them; what is not there yet is
    left out, and so are the rows of those that learn nothing.
    """
    lines: dict[str, list[Point]] = {}
    for size in SIZES:
        path = folder / f"photos_{size}.csv"
        if not path.is_file():
            continue
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["n"]:
                    mean, high = float(row["mean"]), float(row["ci95_high"])
                    lines.setdefault(row["strategy"], []).append(Point(size, mean, high - mean))
    return lines


def describe(lines: dict[str, list[Point]]) -> str:
    """What the picture says of itself: all that it was drawn from."""
    return "\n".join(f"{name}: {[tuple(p) for p in points]}" for name, points in lines.items())


def draw(lines: dict[str, list[Point]], out_png: Path) -> Path:
    """Accuracy over images a class."""
    figure, axis = draw_lines(
        lines, metric="test/accuracy", over=f"training images of each of {CLASSES} classes",
        title=f"The last {CLASSES} classes of Tiny ImageNet, ViT-S/14 at 70 pixels",
    )  # fmt: skip
    axis.set_xticks(SIZES, [str(size) for size in SIZES])
    axis.minorticks_off()
    style, colour = level_style("chance")
    axis.axhline(1 / CLASSES, color=colour, ls=style, lw=1.4, label="chance, majority class")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return save(figure, out_png, description=describe(lines))


if __name__ == "__main__":
    print(draw(read(HERE / "results"), HERE / "images" / "photos.png"))
