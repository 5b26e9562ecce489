"""`kora data cache`: fill the feature cache of a config before it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from kora.console.say import say
from kora.training.lightning_cli import parse
from kora.training.progress import without_noise

__all__ = ["fill_cache"]


def fill_cache(args: Sequence[str]) -> None:
    """Fill the feature cache on the devices and in the precision of the config, as a fit would.

    Raises:
        ValueError: This config has no features to cache; gives the reason.
        OSError: There is no room.
    """
    cli = parse(args)
    made = cli.parser.instantiate(cli.config)[cli.command]
    task = made.model
    task.feature_cache.option = True
    cli.source_stages.assume_sources(task)
    quiet = {
        "callbacks": [_StopsThere()],
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "num_sanity_val_steps": 0,
        "min_epochs": None,
        "min_steps": None,
    }
    with without_noise():
        Trainer(**{**made.trainer, **quiet}).fit(task, datamodule=made.data)
    filled = task.feature_cache.splits
    folder = filled[0].table.folder.parent
    say(f"{sum(one.filled for one in filled):,} images were computed; the cache is in {folder}.")


class _StopsThere(Callback):
    """Stops the fit before its first step."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = True

    def on_train_batch_start(self, *args: Any) -> None:
        raise AssertionError("training began")
