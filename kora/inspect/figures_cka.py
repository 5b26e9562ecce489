"""Heat maps of CKA between layers.

Shapes: L layers of a model
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kora.reports.canvas import literal, new_figure, save

__all__ = ["cka_map"]

_WRITTEN = 30  # layers above which numbers in the cells would be smaller than can be read
_DARK = 0.55  # CKA below which the colour is dark, and the number on it white


def cka_map(
    cka: NDArray[np.floating[Any]],
    rows: Sequence[str],
    columns: Sequence[str],
    out_png: str | Path,
    *,
    row_label: str,
    column_label: str,
    title: str = "",
) -> Path:
    """CKA (L, L) with its values, the first layer at the bottom left; grey where there is none.

    Colours run from 0 to 1 in every picture, so that pictures can be compared.

    Raises:
        ValueError: The matrix is not of this many rows and columns.
    """
    cka = np.asarray(cka, dtype=np.float64)
    expected = (len(rows), len(columns))
    if cka.shape != expected:
        raise ValueError(f"CKA has shape {cka.shape}; expected {expected} for these layers.")
    written = max(expected) <= _WRITTEN
    cell = 0.4 if written else 0.16  # inches
    size = (2.4 + cell * max(expected[1], 6), 1.8 + cell * max(expected[0], 6))
    figure, (axis,) = new_figure(1, size=size, title=title)
    axis.set_facecolor("#BBBBBB")
    image = axis.imshow(
        cka, cmap="viridis", vmin=0, vmax=1, origin="lower", interpolation="nearest"
    )
    figure.colorbar(image, ax=axis, shrink=0.8, label="CKA (unbiased)")
    font = 8 if written else 6
    axis.set_xticks(range(len(columns)), _short(columns), rotation=90, fontsize=font)
    axis.set_yticks(range(len(rows)), _short(rows), fontsize=font)
    axis.set_xlabel(literal(f"layers of {column_label}"))
    axis.set_ylabel(literal(f"layers of {row_label}"))
    if written:
        for (row, column), value in np.ndenumerate(cka):
            text = f"{value:.3f}" if np.isfinite(value) else "–"
            colour = "white" if value < _DARK else "black"
            axis.text(column, row, text, ha="center", va="center", fontsize=6.5, color=colour)
    return save(figure, out_png)


def _short(names: Sequence[str]) -> list[str]:
    """Blocks by their numbers alone."""
    return [name.removeprefix("block ") for name in names]
