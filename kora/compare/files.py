"""The files of a comparison: Markdown, LaTeX, CSV, a page for the browser, and pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path

from kora.compare import figures, figures_against
from kora.compare.answers import classes_csv, differing_csv
from kora.compare.comparison import Comparison, to_csv, to_latex
from kora.compare.overview import overview
from kora.compare.page import to_html
from kora.console.identity import looks
from kora.console.tables import in_markdown
from kora.runs.durable import write_text

__all__ = ["write_files"]


def write_files(
    out: Path,
    comparisons: Sequence[Comparison],
    notes: Sequence[str],
    *,
    against: Sequence[str] = (),
) -> list[Path]:
    """Write `compare.md`, `.tex`, `.csv`, `.html` and a picture per table; returns the files.

    If runs recorded their answers, writes `classes.csv` and `differing_images.csv` as well. Each
    name in `against` adds a picture of all tables together, see `figures_against`.

    Raises:
        ValueError: a picture of `against` cannot be drawn.
    """
    sections: list[str] = []
    pictures: list[Path] = []
    shown = looks(group.name for comparison in comparisons for group in comparison.groups)
    together = overview(comparisons)
    if together is not None:
        sections.append(together.to_markdown())
    names: set[str] = set()
    for comparison in comparisons:
        # "fewshot (test only)" -> comparison_fewshot_test_only.png
        suffix = "_" + re.sub(r"[^\w.-]+", "_", comparison.title).strip("_")[:60]
        stem = f"comparison{suffix if len(comparisons) > 1 else ''}"
        numbered = (f"{stem}_{number}" for number in count(2))
        # Two titles may differ in what no file name may hold.
        name = next(one for one in chain([stem], numbered) if one not in names)
        names.add(name)
        name += ".png"
        pictures.append(figures.comparison(comparison, out / name, shown=shown))
        sections += [comparison.to_markdown(), f"![{in_markdown(comparison.title)}]({name})\n"]
    for what in against:
        picture = out / f"against_{what}.png"
        pictures.append(figures_against.against(comparisons, what, picture, shown=shown))
        sections.append(f"![Against {what}](against_{what}.png)\n")
    if notes:
        sections += ["## Left out\n", *(f"- {in_markdown(note)}" for note in notes), ""]
    texts = {
        "compare.md": "\n".join(sections),
        "compare.tex": to_latex(comparisons),
        "compare.csv": to_csv(comparisons),
        "compare.html": to_html(comparisons, notes, beside=out),
    }
    answers = [(table.title, table.answers) for table in comparisons if table.answers is not None]
    if answers:
        texts["classes.csv"] = classes_csv(answers)
        texts["differing_images.csv"] = differing_csv(answers)
    return [write_text(out / name, text) for name, text in texts.items()] + pictures
