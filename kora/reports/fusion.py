"""Attention of a fusion by place and source, over a whole evaluation: table and heat map.

Shapes: P places, N source adapters.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from lightning import Trainer
from numpy.typing import NDArray

from kora.adapters import AdapterFusion
from kora.adapters.base import place_of
from kora.console.tables import csv_text
from kora.runs.durable import write_text
from kora.tasks import AdapterTask

__all__ = ["FUSION_TABLE", "FusionReport", "fusion_report_for"]

FUSION_TABLE = "fusion_attention.csv"


class FusionReport:
    """Mean attention over all tokens of all images of a validation or test.

    Attach the fusion before calling `begin`.
    """

    def __init__(self, fusion: AdapterFusion) -> None:
        self.fusion = fusion
        self.shares: NDArray[np.float64] | None = None  # (P, N); a row sums to 1

    def begin(self) -> None:
        """Start counting."""
        self.fusion.watch(True)

    def gather(self, trainer: Trainer) -> None:
        """Stop counting, and take the mean over all processes; call it on each of them."""
        self.fusion.watch(False)
        rows = []
        for place in self.fusion.fused().values():
            if place.share_N is None:  # no image on this process
                number = len(place.adapters)
                place.share_N = torch.zeros(number, device=next(place.parameters()).device)
            weighted = torch.cat(
                (place.share_N * place.seen, place.share_N.new_tensor([place.seen]))
            )
            total = trainer.strategy.reduce(weighted, reduce_op="sum")
            assert isinstance(total, torch.Tensor)
            rows.append((total[:-1] / total[-1].clamp(min=1)).double().cpu().numpy())
        self.shares = np.stack(rows)

    def write_table(self, folder: Path) -> None:
        """Write `fusion_attention.csv`, one row per place."""
        if self.shares is None:
            return
        rows = [
            [*place_of(key), *(f"{share:.6f}" for share in row)]
            for key, row in zip(self._keys, self.shares, strict=True)
        ]
        heads = ["block", "place", *self._sources]
        records = [dict(zip(heads, row, strict=True)) for row in rows]
        write_text(folder / FUSION_TABLE, csv_text(records, heads))

    def pictures(self, folder: Path) -> list[Path]:
        """A heat map of the same."""
        if self.shares is None:
            return []
        from kora.reports.figures_fusion import attention_map

        picture = folder / "fusion_attention.png"
        title = self.fusion.label
        return [attention_map(self.shares, self._keys, self._sources, picture, title=title)]

    @property
    def _keys(self) -> list[str]:
        return list(self.fusion.fused())

    @property
    def _sources(self) -> list[str]:
        return [source.name for source in self.fusion.earlier_runs.found]


def fusion_report_for(task: AdapterTask) -> FusionReport | None:
    """A report if the strategy is a fusion, else None."""
    return FusionReport(task.adapter) if isinstance(task.adapter, AdapterFusion) else None
