"""Heat maps: quantities by block and site, and CKA between layers.

Shapes: R rows (blocks), S columns (sites).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LogNorm, Normalize
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from kora.analysis.quantity import Place, Quantity, Spectrum
from kora.reports.canvas import literal, new_figure, save, write_cells

__all__ = ["cka_map", "place_maps", "spectrum_maps"]

_DECADES = 2.0  # values that span as much or more have logarithmic colours
_WRITTEN = 32  # rows and columns up to which there is room for numbers in the cells
_ACROSS = 4  # maps in a row
_NONE = "#DDDDDD"

Grid = NDArray[np.float64]


def place_maps(quantities: Sequence[Quantity], out_png: str | Path, *, title: str = "") -> Path:
    """Draw a map per quantity: one row per block, one column per site, numbers in the cells.

    If values span two decades or more, colours are logarithmic. Exact zeros are hatched and read 0;
    values that were not finite are hatched and read none; a place that does not exist is white.
    """
    rows, columns = _axes_of([place for one in quantities for place in one.values])
    grids = [_grid(one.values, rows, columns) for one in quantities]
    norms: dict[str, Normalize] = {}
    for one in quantities:
        family = one.family or one.name
        same = [
            grid for other, grid in zip(quantities, grids, strict=True)
            if (other.family or other.name) == family
        ]  # fmt: skip
        norms[family] = _norm(np.concatenate([grid.ravel() for grid in same]))
    drawn = [
        (one.title, grid, norms[one.family or one.name])
        for one, grid in zip(quantities, grids, strict=True)
    ]
    return _draw(drawn, rows, columns, out_png, title=title, labels=("site", "block"))


def spectrum_maps(spectra: Sequence[Spectrum], out_png: str | Path, *, title: str = "") -> Path:
    """Draw a map per spectrum: one row per place, one column per singular value, largest first."""
    found = dict.fromkeys(place for one in spectra for place in one.values)
    blocks, sites = _axes_of(list(found))
    places = [place for place in product(blocks, sites) if place in found]
    drawn = []
    for one in spectra:
        grid = np.full((len(places), max(map(len, one.values.values()))), np.nan)
        for row, place in enumerate(places):
            values = one.values.get(place, [])
            grid[row, : len(values)] = values
        drawn.append((one.title, grid, _norm(grid.ravel())))
    rows = [" ".join(place) for place in places]
    columns = [str(number + 1) for number in range(max(grid.shape[1] for _, grid, _ in drawn))]
    labels = ("singular value", "place (block, site)")
    return _draw(drawn, rows, columns, out_png, title=title, labels=labels)


def _axes_of(places: Sequence[Place]) -> tuple[list[str], list[str]]:
    """Blocks by number, then what is in no block; sites in the order of their appearance."""
    blocks = list(dict.fromkeys(block for block, _ in places))
    blocks.sort(key=lambda block: (not block.isdecimal(), int(block) if block.isdecimal() else 0))
    return blocks, list(dict.fromkeys(site for _, site in places))


def _grid(values: Mapping[Place, float | None], rows: list[str], columns: list[str]) -> Grid:
    """Values (R, S): NaN if there is no such place, infinity if nothing finite was measured."""
    grid = np.full((len(rows), len(columns)), np.nan)
    for (block, site), value in values.items():
        grid[rows.index(block), columns.index(site)] = math.inf if value is None else value
    return grid


def _norm(values: Grid) -> Normalize:
    """The colour scale of all finite values; logarithmic if they span `_DECADES` or more."""
    positive = values[np.isfinite(values) & (values > 0)]
    if not len(positive):
        return Normalize(0, 1)
    low, high = float(positive.min()), float(positive.max())
    if math.log10(high) - math.log10(low) >= _DECADES:
        return LogNorm(low, high)
    return Normalize(0, high)


def _draw(
    drawn: Sequence[tuple[str, Grid, Normalize]],
    rows: Sequence[str],
    columns: Sequence[str],
    out_png: str | Path,
    *,
    title: str,
    labels: tuple[str, str],
) -> Path:
    """Draw the maps; one may have only the first of the columns."""
    across = min(_ACROSS, len(drawn))
    down = math.ceil(len(drawn) / across)
    room = len(rows) <= _WRITTEN
    written = [room and grid.shape[1] <= _WRITTEN for _, grid, _ in drawn]
    widths = [_width(drawn[i][1].shape[1], written=written[i]) for i in range(across)]
    height = 1.1 + max((0.25 if room else 0.16) * len(rows), 0.8)
    figure, axes = new_figure(
        across, rows=down, size=(sum(widths), height * down), widths=widths, title=title
    )
    colours = colormaps["viridis"]
    for axis, (name, grid, norm), numbers in zip(axes, drawn, written, strict=False):
        image = axis.imshow(
            np.ma.masked_invalid(grid), cmap=colours, norm=norm, aspect="auto",
            interpolation="nearest",
        )  # fmt: skip
        _mark(axis, grid, norm, colours, written=numbers)
        figure.colorbar(image, ax=axis, shrink=0.85).ax.tick_params(labelsize=7)
        axis.set_title(name, fontsize=9)
        ticks = range(0, grid.shape[1], math.ceil(grid.shape[1] / _WRITTEN))
        axis.set_xticks(ticks, [columns[tick] for tick in ticks], fontsize=8)
        if max(map(len, columns)) > 5:
            axis.tick_params(axis="x", rotation=45)
        axis.set_yticks(range(len(rows)), rows, fontsize=8 if room else 6)
        axis.set_xlabel(labels[0], fontsize=8)
        axis.set_ylabel(labels[1], fontsize=8)
    for axis in axes[len(drawn) :]:
        axis.set_axis_off()
    return save(figure, out_png)


def _width(columns: int, *, written: bool) -> float:
    """Width of a map with its margins, in inches; it stops growing at `_WRITTEN` columns."""
    cell = 0.58 if written else 0.35
    return 1.5 + max(cell * min(columns, _WRITTEN), 1.6)


def _mark(axis: Axes, grid: Grid, norm: Normalize, colours: Colormap, *, written: bool) -> None:
    """Write the numbers, and hatch zeros and values that were not finite."""
    special = (grid == 0) | np.isinf(grid)
    for row, column in np.argwhere(special):
        cell: dict[str, Any] = {"facecolor": _NONE, "edgecolor": "white", "linewidth": 0}
        axis.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, hatch="////", **cell))
    if written:
        shown = np.where(np.isfinite(grid) & ~special, grid, 1.0)
        bright = colours(norm(shown))[..., :3] @ (0.299, 0.587, 0.114) > 0.5
        texts = [[_short(value) for value in row] for row in grid]
        write_cells(axis, texts, ~(bright | special), size=6.5)


def _short(value: float) -> str:
    """0.123, 12.3, 4e-09: at most six characters; empty if there is no place."""
    if math.isnan(value):
        return ""
    if math.isinf(value):
        return "none"
    if value == 0:
        return "0"
    if 0.001 <= abs(value) < 1000:
        return f"{value:.3g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


_WRITTEN_LAYERS = 30  # above, numbers in the cells would be too small to read
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
    """Draw CKA (L, L) with its values, the first layer at the bottom left; grey if undefined.

    Colours run from 0 to 1 in every picture, so that pictures can be compared.
    """
    written = max(cka.shape) <= _WRITTEN_LAYERS
    cell = 0.4 if written else 0.16  # inches
    size = (2.4 + cell * max(len(columns), 6), 1.8 + cell * max(len(rows), 6))
    figure, (axis,) = new_figure(1, size=size, title=title)
    axis.set_facecolor("#BBBBBB")
    image = axis.imshow(
        cka, cmap="viridis", vmin=0, vmax=1, origin="lower", interpolation="nearest"
    )
    figure.colorbar(image, ax=axis, shrink=0.8, label="CKA (unbiased)")
    font = 8 if written else 6
    axis.set_xticks(range(len(columns)), _numbers(columns), rotation=90, fontsize=font)
    axis.set_yticks(range(len(rows)), _numbers(rows), fontsize=font)
    axis.set_xlabel(literal(f"layers of {column_label}"))
    axis.set_ylabel(literal(f"layers of {row_label}"))
    if written:
        texts = [[f"{v:.3f}" if np.isfinite(v) else "–" for v in row] for row in cka]
        write_cells(axis, texts, cka < _DARK, size=6.5)
    return save(figure, out_png)


def _numbers(names: Sequence[str]) -> list[str]:
    """Names of layers, with blocks as bare numbers."""
    return [name.removeprefix("block ") for name in names]
