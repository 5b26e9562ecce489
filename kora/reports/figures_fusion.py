"""The picture of a fusion: which source adapter the tokens attend to at each place.

Shapes: P places, N source adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kora.reports.canvas import PERCENT, literal, new_figure, save, write_cells

__all__ = ["attention_map"]

_WRITTEN_ROWS = 30  # above, numbers in the cells would be too small to read
_NAME = 28  # most characters of a line of a source's name


def attention_map(
    shares: NDArray[np.floating[Any]],
    places: Sequence[str],
    sources: Sequence[str],
    out_png: str | Path,
    *,
    title: str = "",
) -> Path:
    """Draw attention shares (P, N): rows are places in forward order, columns source adapters.

    White is an equal share, 1 / N; blue is more, red less.
    """
    written = len(places) <= _WRITTEN_ROWS
    row = 0.26 if written else 0.16  # inches
    size = (2.6 + 1.3 * len(sources), 2.4 + row * len(places))
    figure, (axis,) = new_figure(1, size=size, title=title)
    equal = 1 / len(sources)
    reach = max(float(np.abs(shares - equal).max()), 0.02)  # noise around 1 / N stays white
    image = axis.imshow(
        shares, cmap="RdBu", vmin=equal - reach, vmax=equal + reach,
        aspect="auto", interpolation="nearest",
    )  # fmt: skip
    bar = figure.colorbar(image, ax=axis, format=PERCENT, shrink=0.8)
    bar.set_label(f"share of the attention (equal: {100 * equal:.3g} %)")
    names = ["\n".join(literal(_short(part)) for part in name.split("/")) for name in sources]
    axis.set_xticks(range(len(sources)), names, rotation=30, ha="right", fontsize=8)
    axis.set_yticks(range(len(places)), places, fontsize=8 if written else 6)
    axis.set(xlabel="source adapter", ylabel="place (block, site)")
    if written:
        texts = [[f"{100 * share:.1f}" for share in row] for row in shares]
        write_cells(axis, texts, np.abs(shares - equal) > 0.6 * reach, size=7)
    return save(figure, out_png)


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"
