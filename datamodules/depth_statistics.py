"""Depth statistics of a split: range, mean, median, histogram, and the mean at each pixel.

Shapes: n images a block, N images, H height, W width, P measured pixels
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from datamodules.splits import IntArray

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["DepthStatistics", "histogram_table", "spread_places", "spread_statistics"]

_BIN_M = 0.5
_BINS = 20
_BLOCK_PIXELS = 5_000_000  # of depth in memory at a time; 16 frames of 480x640
#: Bits of a float32 that the fine histogram leaves out: its bins are 2**-11 of the depth wide.
_DROPPED_BITS = 12
_BARS = 36  # characters of the longest bars of all splits together: fits a terminal of 80
_EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True, eq=False)
class DepthStatistics:
    """Statistics over the measured pixels (depth above 0) of some images of a split.

    Args:
        images: images looked at.
        of_images: images that the split has.
        valid_share: measured pixels among all.
        min_m, max_m, mean_m: exact over the measured pixels; NaN if there is none.
        median_m: the lower median, to within 1/4096 of its value, from a fine histogram over the
            leading bits of the numbers, which covers any unit.
        edges_m: 0, 0.5, ..., 10 m: where each count begins.
        counts: measured pixels from each edge (included) to the next; the last count is open, it
            holds everything from 10 m on.
        mean_map: float32 (H, W), the mean of the measured values at each pixel; `mean_m` where a
            pixel was never measured.
    """

    images: int
    of_images: int
    valid_share: float
    min_m: float
    max_m: float
    mean_m: float
    median_m: float
    edges_m: list[float]
    counts: list[int]
    mean_map: NDArray[np.float32] = field(repr=False)

    @classmethod
    def of_blocks(cls, blocks: Iterable[Tensor], *, of_images: int) -> DepthStatistics:
        """Collect them from blocks of depth (n, H, W) float32 in metres, one block at a time.

        Raises:
            ValueError: there is no image.
        """
        totals: _Totals | None = None
        for block_nHW in blocks:
            totals = totals or _Totals(block_nHW.shape[1:])
            totals.add(block_nHW)
        if totals is None or totals.images == 0:
            raise ValueError("There is no image to take depth statistics of.")
        return totals.statistics(of_images)

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON, without the map."""
        return {name: value for name, value in vars(self).items() if name != "mean_map"}


def spread_places(images: int, most: int) -> IntArray:
    """At most `most` places of `images`, evenly spread."""
    return np.linspace(0, images - 1, min(images, most)).round().astype(np.int64)


def spread_statistics(data: Any, split: str, *, most_images: int) -> DepthStatistics:
    """Statistics of a split of a data module, from at most `most_images` evenly spread images.

    Raises:
        ValueError: There is no image, or no `depth_m`.
    """
    of_images = len(data.indices(split))
    if of_images == 0:
        raise ValueError(f"The {split} split of {data.dataset_name} holds no image.")
    places = spread_places(of_images, most_images)
    first = data.samples(split, places[:1])
    if "depth_m" not in first:
        raise ValueError(
            f"Batches of {data.dataset_name} hold {', '.join(first)} and no depth_m. Depth needs a "
            "data set with depth; of datamodules.Synthetic ask for it with data.maps: [depth_m]."
        )

    def blocks() -> Iterator[Tensor]:
        step = max(1, _BLOCK_PIXELS // first["depth_m"].numel())
        title = f"Measuring depth ({split})"
        with tqdm(total=len(places), desc=title, unit="image", delay=2, leave=False) as bar:
            for start in range(0, len(places), step):
                some = places[start : start + step]
                yield data.samples(split, some)["depth_m"]
                bar.update(len(some))

    return DepthStatistics.of_blocks(blocks(), of_images=of_images)


def histogram_table(stats_by_split: Mapping[str, DepthStatistics]) -> Table:
    """A text histogram: a row for each half metre, a column of bars and shares for each split."""
    from rich.table import Table

    table = Table(title="Measured pixels by depth", title_justify="left", box=None)
    table.add_column("metres", justify="right")
    for name in stats_by_split:
        table.add_column(name, no_wrap=True)
    columns = [_shares(found.counts) for found in stats_by_split.values()]
    longest = max((share for column in columns for share in column), default=0.0)
    taken = [row for row in range(_BINS + 1) if any(column[row] for column in columns)]
    for row in range(min(taken, default=0), max(taken, default=-1) + 1):
        low = row * _BIN_M
        label = f"{low:.1f} – {low + _BIN_M:.1f}" if row < _BINS else f"{low:.1f} and more"
        table.add_row(label, *(_bar(column[row], longest, len(columns)) for column in columns))
    return table


class _Totals:
    """Running sums in float64 and int64."""

    def __init__(self, size_HW: torch.Size) -> None:
        self.images = 0
        self.sum_HW = torch.zeros(size_HW, dtype=torch.float64)
        self.count_HW = torch.zeros(size_HW, dtype=torch.int64)
        self.coarse = torch.zeros(_BINS + 1, dtype=torch.int64)
        self.fine = torch.zeros(2 ** (31 - _DROPPED_BITS), dtype=torch.int64)
        self.least = torch.inf
        self.most = -torch.inf

    def add(self, depth_nHW: Tensor) -> None:
        assert depth_nHW.dtype == torch.float32
        assert bool((depth_nHW >= 0).all()), "depth is never negative and never NaN"
        self.images += len(depth_nHW)
        self.sum_HW += depth_nHW.sum(dim=0, dtype=torch.float64)
        self.count_HW += (depth_nHW > 0).sum(dim=0)
        depth_P = depth_nHW[depth_nHW > 0]
        if len(depth_P) == 0:
            return
        self.least = min(self.least, float(depth_P.min()))
        self.most = max(self.most, float(depth_P.max()))
        bin_P = (depth_P / _BIN_M).clamp_(max=_BINS).long()
        self.coarse += torch.bincount(bin_P, minlength=len(self.coarse))
        # The bits of positive floats are ordered as the floats are.
        bits_P = depth_P.view(torch.int32) >> _DROPPED_BITS
        self.fine += torch.bincount(bits_P, minlength=len(self.fine))

    def statistics(self, of_images: int) -> DepthStatistics:
        measured = int(self.count_HW.sum())
        mean = float(self.sum_HW.sum()) / measured if measured else float("nan")
        everywhere_HW = torch.full_like(self.sum_HW, mean)
        mean_HW = torch.where(self.count_HW > 0, self.sum_HW / self.count_HW, everywhere_HW)
        return DepthStatistics(
            images=self.images,
            of_images=of_images,
            valid_share=measured / (self.images * self.count_HW.numel()),
            min_m=self.least if measured else float("nan"),
            max_m=self.most if measured else float("nan"),
            mean_m=mean,
            median_m=self._median(measured) if measured else float("nan"),
            edges_m=[row * _BIN_M for row in range(_BINS + 1)],
            counts=self.coarse.tolist(),
            mean_map=mean_HW.float().numpy(),
        )

    def _median(self, measured: int) -> float:
        below = self.fine.cumsum(0)
        row = int(torch.searchsorted(below, (measured + 1) // 2))
        middle = torch.tensor((row << _DROPPED_BITS) | (1 << (_DROPPED_BITS - 1)))
        value = float(middle.to(torch.int32).view(torch.float32))
        return min(max(value, self.least), self.most)


def _shares(counts: list[int]) -> list[float]:
    total = sum(counts) or 1
    return [count / total for count in counts]


def _bar(share: float, longest: float, splits: int) -> str:
    if share == 0:
        return ""
    eighths = max(
        1, round(8 * (_BARS // splits) * share / longest)
    )  # at least one, so that it is visible
    bar = "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")
    percent = f"{share:.1%}" if share >= 0.001 else "<0.1%"
    return f"{percent:>6} {bar}"
