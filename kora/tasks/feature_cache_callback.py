"""The feature cache of a task, for the time of a fit."""

from __future__ import annotations

from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import Callback

__all__ = ["KeptInputs"]


class KeptInputs(Callback):
    """Lets kept inputs stand in for the images of a fit, and gives the images back behind it.

    Another task may read the same data next, and its loops would take these inputs for its own.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Fill the cache, or open it."""
        pl_module.feature_cache.begin(pl_module, trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Give the images back."""
        pl_module.feature_cache.end(trainer)

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Give the images back."""
        pl_module.feature_cache.end(trainer)
