"""Each name of Lightning that is not public: it is there, and what breaks without it."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any, Union, get_args

import pytest
from lightning import Trainer
from lightning.fabric.loggers import csv_logs
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loops import fit_loop, loop, progress, training_epoch_loop
from lightning.pytorch.strategies.launchers import subprocess_script
from lightning.pytorch.trainer.connectors import signal_connector

from kora.training.lightning_cli import parse

REPOSITORY = Path(__file__).resolve().parents[1]
OURS = REPOSITORY / "kora" / "lightning_internals.py"

#: Where each is defined or used by Lightning itself, and what of KoRA would break.
NAMES: dict[str, tuple[Any, str]] = {
    "_combined_loader": (fit_loop, "the cache cannot stand in for a loader that was made before"),
    "_should_accumulate": (training_epoch_loop, "a checkpoint within accumulated batches"),
    "_should_check_val_fx": (training_epoch_loop, "a validation that was due is lost by a resume"),
    "_data_fetcher": (fit_loop, "the same"),
    "_batches_that_stepped": (
        training_epoch_loop,
        "runs that trained together log their test at step 0",
    ),
    "_restarting": (loop, "with max_steps, a resume trains an epoch twice that was over"),
    "_Loop": (loop, "a checkpoint holds no place within an epoch"),
    "_BaseProgress": (progress, "the same"),
    "_checkpoint_connector": (Trainer, "no checkpoint where the other processes are gone"),
    "_signal_connector": (Trainer, "SIGTERM in a step of two processes hangs"),
    "_sigterm_notifier_fn": (signal_connector, "the same"),
    "_slurm_sigusr_handler_fn": (signal_connector, "SLURM's signal saves in the midst of a step"),
    "_SubprocessScriptLauncher": (subprocess_script, "a stopped process kills the others"),
    "_get_train_description": (RichProgressBar, "the bar says that the last epoch is -2"),
    "_experiment": (CSVLogger, "metrics.csv of a resumed run begins anew"),
    "_check_log_dir_exists": (csv_logs, "the same"),
    "_rewrite_with_new_header": (csv_logs, "a kill while a column is added loses the log"),
    "_parser": (LightningCLI, "no resolved config, so no run is found again"),
    "_get": (LightningCLI, "no trainer with a run folder"),
    "_instantiate_trainer": (LightningCLI, "the same"),
    "_run_subcommand": (LightningCLI, "Ctrl-C does not say how to resume"),
    "_parse_ckpt_path": (LightningCLI, "options of a checkpoint win over what was typed"),
}


def private_names(path: Path) -> set[str]:
    """Private attributes, imports and methods in a file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


@pytest.mark.parametrize("name", NAMES)
def test_lightning_has_it_and_uses_it(name: str) -> None:
    source = inspect.getsource(NAMES[name][0])
    assert name in source, f"without it: {NAMES[name][1]}"


def test_the_file_uses_these_and_no_others() -> None:
    assert private_names(OURS) == set(NAMES)


def test_no_other_file_uses_one() -> None:
    own = {"_get", "_parser", "_experiment"}  # names that others may give to something of their own
    used = {
        (path.name, name)
        for path in (REPOSITORY / "kora").rglob("*.py")
        if path != OURS
        for name in private_names(path) & set(NAMES) - own
    }
    assert used == set()


@pytest.mark.parametrize("option", ["limit_val_batches", "val_check_interval"])
def test_one_batch_is_not_read_as_the_whole_of_them(
    monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    """As Python may hold the two orders of a union for the same; see `whole_numbers_first`."""
    hints = inspect.unwrap(Trainer.__init__).__annotations__
    for name, hint in list(hints.items()):
        if {int, float} <= set(get_args(hint)):
            monkeypatch.setitem(hints, name, Union[float, int, None])  # noqa: UP007
    for text, kind in (("1", int), ("1.0", float)):
        cli = parse(["fit", "--config", "configs/quickstart.yaml", f"--trainer.{option}", text])
        assert type(cli.config.fit.trainer[option]) is kind
