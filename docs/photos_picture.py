"""Draw how far every strategy is ahead of a linear probe, from the values in docs/results.

    python docs/photos_picture.py

`kora compare --against images` needs all runs at hand; this needs their values alone.
"""

from __future__ import annotations

import csv
from pathlib import Path

from kora.analysis.statistics import Lead, lead
from kora.console.identity import looks
from kora.reports.canvas import GREY, new_figure, save

__all__ = ["describe", "draw", "read"]

HERE = Path(__file__).parent
SIZES = (1, 5, 20, 95)  # images of each class
PROBE = "LinearProbe"
#: The strategies that the text is about; the tables have all.
SHOWN = ("MultiLayerProbe", "KoRA-refined", "LoRA", "LoRA-layers", "KoRA-over-LoRA")


def read(folder: Path) -> dict[int, dict[str, Lead]]:
    """By images a class and strategy, of `photos_1.csv` and the like (`kora compare --out`).

    `photos_1_backbone.csv` has strategies that train through the backbone, and maybe the linear
    probe of the same machine. Sizes that are not measured yet are left out.
    """
    found: dict[int, dict[str, Lead]] = {}
    for size in SIZES:
        path = folder / f"photos_{size}.csv"
        if not path.is_file():
            continue
        leads: dict[str, Lead | None] = {}
        cached = _values(path)
        through = path.with_name(f"{path.stem}_backbone.csv")
        for values in (_values(through) if through.is_file() else {}, cached):
            probe = values.get(PROBE, cached[PROBE])
            leads |= {name: lead(values[name], probe) for name in SHOWN if name in values}
        found[size] = {name: ahead for name in SHOWN if (ahead := leads.get(name)) is not None}
    return found


def _values(path: Path) -> dict[str, dict[str, float]]:
    """Accuracy by strategy and seed."""
    with path.open(encoding="utf-8", newline="") as file:
        return {
            row["strategy"]: dict(
                zip(row["seeds"].split(), map(float, row["values"].split()), strict=True)
            )
            for row in csv.DictReader(file)
            if row["n"]
        }


def describe(found: dict[int, dict[str, Lead]]) -> str:
    """What the picture says of itself: all that it was drawn from."""
    return "\n".join(
        f"{size} a class, {name}: {ahead.mean:.6f} {ahead.half_width:.6f} {ahead.seeds}"
        for size, rows in found.items()
        for name, ahead in rows.items()
    )


def draw(found: dict[int, dict[str, Lead]], out_png: Path) -> Path:
    """A group of points for each number of images, side by side so that none hides another."""
    names = [name for name in SHOWN if any(name in rows for rows in found.values())]
    look = looks([*names, PROBE])
    figure, (axis,) = new_figure(
        1, size=(7.2, 4.2), title="100 new classes of Tiny ImageNet, ViT-S/14 at 70 pixels"
    )
    for place, name in enumerate(names):
        offset = 0.6 * (place - (len(names) - 1) / 2) / max(1, len(names))
        shown = [(x, rows[name]) for x, rows in enumerate(found.values()) if name in rows]
        axis.errorbar(
            [x + offset for x, _ in shown], [ahead.mean for _, ahead in shown],
            yerr=[ahead.half_width for _, ahead in shown],
            fmt=look[name].sign, color=look[name].hex, ms=7, capsize=4, lw=1.6, label=name,
        )  # fmt: skip
    axis.axhline(0, color=look[PROBE].hex, lw=1.4, label=PROBE)
    axis.set_xticks(range(len(found)), [str(size) for size in found])
    axis.set_xlabel("training images a class")
    axis.set_ylabel("points of test accuracy ahead of LinearProbe")
    axis.grid(alpha=0.25, axis="y")
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title("mean over seeds, paired, with 95 % interval", fontsize=8, color=GREY)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return save(figure, out_png, description=describe(found))


if __name__ == "__main__":
    print(draw(read(HERE / "results"), HERE / "images" / "photos.png"))
