"""The outcomes of a run's test, gathered from all processes into its folder."""

from __future__ import annotations

from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from kora.runs.outcomes import collect, write_outcomes
from kora.tasks import AdapterTask
from kora.tasks.ranks import in_one_list

__all__ = ["OutcomeRecord"]


class OutcomeRecord(Callback):
    """Writes `test_outcomes.safetensors` at the end of a test, on the first rank.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """On every rank: it collects from all of them."""
        assert isinstance(pl_module, AdapterTask)
        batches = in_one_list([{k: v.cpu() for k, v in b.items()} for b in pl_module.tested])
        pl_module.tested = []
        found = collect([{k: v.numpy() for k, v in batch.items()} for batch in batches])
        if found is not None and trainer.is_global_zero:
            write_outcomes(self.folder, found)
