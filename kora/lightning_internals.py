"""All that this project uses of Lightning besides its public interface.

These names may change with any minor version, so pyproject.toml has an upper bound on it.
`tests/test_lightning_internals.py` says what each is for, and what would break without it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_args

from lightning import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loops.loop import _Loop as Loop
from lightning.pytorch.loops.progress import _BaseProgress as Progress
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

__all__ = [
    "Bar",
    "Cli",
    "CsvLog",
    "CsvWriter",
    "Loop",
    "Progress",
    "accumulates",
    "count_as_fitted",
    "end_restart",
    "full_checkpoint",
    "take_signals",
    "train_loaders",
    "validation_is_due",
    "was_started_by_lightning",
    "whole_numbers_first",
]


def train_loaders(trainer: Trainer) -> list[Any]:
    """The loaders of training; none before Lightning has made them."""
    combined = trainer.fit_loop._combined_loader
    return [] if combined is None else combined.flattened


def accumulates(trainer: Trainer) -> bool:
    """Whether the batch just done made no optimiser step, as gradients are accumulated."""
    return trainer.fit_loop._should_accumulate()


def validation_is_due(trainer: Trainer) -> bool:
    """Whether a validation comes after the batch just done."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def count_as_fitted(trainer: Trainer, *, epochs: int, steps: int) -> None:
    """Have a trainer count epochs and steps, one a batch, as after a fit of its own."""
    loop = trainer.fit_loop
    loop.max_batches = steps // epochs
    loop.epoch_progress.current.completed = epochs
    loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = steps
    loop.epoch_loop._batches_that_stepped = steps


def end_restart(*loops: Loop) -> None:
    """Have loops begin as in a fit that was not resumed."""
    for loop in loops:
        loop._restarting = False


def full_checkpoint(trainer: Trainer) -> dict[str, Any]:
    """The content of a checkpoint, from this process alone: `save_checkpoint` waits for all."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


def take_signals(
    trainer: Trainer, *, sigterm: Callable[[int, Any], None], slurm: Callable[[int, Any], None]
) -> None:
    """Have these called for SIGTERM, and for SLURM's signal before its time limit."""
    connector: Any = trainer._signal_connector
    connector._sigterm_notifier_fn = sigterm
    connector._slurm_sigusr_handler_fn = slurm


def was_started_by_lightning(trainer: Trainer) -> bool:
    """Whether the processes of this trainer are started by Lightning, and ended by it."""
    return isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher)


def whole_numbers_first(function: Callable[..., Any]) -> None:
    """Have a parser try int before float if a parameter takes both.

    Lightning writes Optional[Union[int, float]]. Python caches such expressions, and treats
    Union[float, int] as the same; so the one that was written first decides the order.
    """
    for name, hint in function.__annotations__.items():
        if set(get_args(hint)) == {int, float, type(None)}:
            function.__annotations__[name] = int | float | None


class Bar(RichProgressBar):
    """Lightning's bar, with a custom description."""

    def training_text(self, text: str) -> str:
        """The text before the training bar, made from Lightning's own."""
        return text

    def _get_train_description(self, current_epoch: int) -> str:
        return self.training_text(super()._get_train_description(current_epoch))


class CsvLog(CSVLogger):
    """Lightning's CSV logger, with a writer of our own."""

    def written_by(self, make: Callable[[], CsvWriter]) -> Any:
        """The writer, made when it is first asked for."""
        if self._experiment is None:
            self._experiment = make()
        return self._experiment


class CsvWriter(ExperimentWriter):
    """Lightning's writer of `metrics.csv`, with hooks for an existing file and a new column."""

    def begin(self) -> None:
        """Called first; Lightning's own warns of an existing file, and removes it."""

    def new_header(self, names: list[str]) -> None:
        """Called for a metric that has no column in the file."""

    def _check_log_dir_exists(self) -> None:
        self.begin()

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self.new_header(fieldnames)


class Cli(LightningCLI):
    """LightningCLI, with its steps by public names."""

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add Lightning's arguments; for its trainer, 1 is one batch, and 1.0 is all of them."""
        whole_numbers_first(inspect.unwrap(Trainer.__init__))
        super().add_core_arguments_to_parser(parser)

    def parser_of(self, command: str) -> LightningArgumentParser:
        """The parser of a command."""
        return self._parser(command)

    def initialised(self, key: str) -> Any:
        """The value of a config key, once classes are instantiated."""
        return self._get(self.config_init, key)

    def make_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Trainer:
        """The trainer of these options."""
        return self._instantiate_trainer(config, callbacks)

    def run_command(self, command: str) -> None:
        """Run the command."""
        super()._run_subcommand(command)

    def _run_subcommand(self, subcommand: str) -> None:
        self.run_command(subcommand)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would let a checkpoint's options override what the user typed."""
