"""Draw the means and intervals of the first table of a page of docs/results.

    python docs/table_picture.py scenes

For a page whose runs are no longer at hand: `kora compare` also draws each seed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

from kora.console.identity import looks
from kora.reports.canvas import GREY, new_figure, save

__all__ = ["Mean", "describe", "draw", "read"]

HERE = Path(__file__).parent
_ROW = re.compile(r"^\| ([\w+-]+) \| (\d+) \| ([\d.]+) % \| ± ([\d.]+) \|")


class Mean(NamedTuple):
    """A strategy's mean in per cent, and half of its 95 % interval, over these seeds."""

    name: str
    mean: float
    half_width: float
    seeds: int


def read(page: Path) -> list[Mean]:
    """The rows of the first table, in its order: strategy, seeds, mean, interval, more."""
    lines = page.read_text(encoding="utf-8").splitlines()
    begin = next(at for at, line in enumerate(lines) if line.startswith("| strategy "))
    end = next(at for at in range(begin, len(lines)) if not lines[at].startswith("|"))
    rows = [_ROW.match(line) for line in lines[begin + 2 : end]]
    return [Mean(r[1], float(r[3]), float(r[4]), int(r[2])) for r in rows if r is not None]


def describe(means: list[Mean]) -> str:
    """What the picture says of itself: all that it was drawn from."""
    return "\n".join(f"{one.name}: {one.mean} {one.half_width} {one.seeds}" for one in means)


def draw(means: list[Mean], title: str, out_png: Path) -> Path:
    """A line for each strategy, the best above."""
    look = looks([one.name for one in means])
    figure, (axis,) = new_figure(1, size=(7.2, 0.9 + 0.38 * len(means)), title=title)
    for place, one in enumerate(reversed(means)):
        axis.errorbar(
            one.mean, place, xerr=one.half_width, fmt=look[one.name].sign,
            color=look[one.name].hex, ms=7, capsize=4, lw=1.6,
        )  # fmt: skip
    axis.set_yticks(range(len(means)), [one.name for one in reversed(means)])
    axis.set_xlabel("test accuracy, %")
    axis.grid(alpha=0.25, axis="x")
    axis.spines[["top", "right"]].set_visible(False)
    note = f"mean of {means[0].seeds} seeds, with 95 % interval"
    axis.set_title(note, fontsize=8, color=GREY)
    return save(figure, out_png, description=describe(means))


if __name__ == "__main__":
    (name,) = sys.argv[1:]
    page = HERE / "results" / f"{name}.md"
    title = page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
    print(draw(read(page), title, HERE / "images" / f"{name}.png"))
