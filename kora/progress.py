"""What a run shows and says while it works."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities import rank_zero_only

__all__ = ["ProgressBar", "say"]


@rank_zero_only
def say(text: str) -> None:
    """Print a line, on the first rank."""
    print(f"kora: {text}", flush=True)


class ProgressBar(RichProgressBar):
    """Lightning's bar with its estimate, less the version number."""

    def get_metrics(self, *args: Any) -> dict[str, Any]:
        metrics = dict(super().get_metrics(*args))
        metrics.pop("v_num", None)
        return metrics
