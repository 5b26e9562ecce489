"""The progress bar of a run."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import RichProgressBar

__all__ = ["ProgressBar"]


class ProgressBar(RichProgressBar):
    """Lightning's bar with its estimate, less the version number."""

    def get_metrics(self, *args: Any) -> dict[str, Any]:
        metrics = dict(super().get_metrics(*args))
        metrics.pop("v_num", None)
        return metrics
