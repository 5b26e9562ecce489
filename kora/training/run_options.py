"""The options of a run that are neither model, data nor trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from kora.loggers.run_folder import Wandb
from kora.training.checkpoints import Saving

__all__ = ["add_run_options", "require_below", "require_something_to_do"]

#: Trainer options that, at 0, leave a command nothing to do or make Lightning divide by zero.
_ABOVE_ZERO = {
    "fit": (
        *("max_epochs", "max_steps", "limit_train_batches", "limit_test_batches"),
        *("accumulate_grad_batches", "check_val_every_n_epoch", "val_check_interval"),
    ),
    "validate": ("limit_val_batches",),
    "test": ("limit_test_batches",),
    "predict": ("limit_predict_batches",),
}


def require_below(experiment: str, runs_dir: str) -> None:
    """Refuse names that lead out of `runs_dir`, or that a library expands.

    Raises:
        ValueError: One of the names does.
    """
    # fsspec, by which Lightning writes checkpoints, gives ~, :: and :// a meaning of its own.
    if runs_dir.startswith("~") or "://" in runs_dir or "::" in str(Path(runs_dir).absolute()):
        raise ValueError(
            f"runs_dir={runs_dir!r}: expected a folder of this machine, without ~, :: and ://. "
            "Write its whole path."
        )
    if any(ord(letter) < 32 for letter in runs_dir):  # scripts of a queue name the folder
        raise ValueError(f"runs_dir={runs_dir!r}: expected a folder without control characters.")
    if "::" in experiment:
        raise ValueError(f"experiment={experiment!r}: a folder name cannot contain ::; use -.")
    parts = Path(experiment).parts
    # Bytes that are not UTF-8, and characters that no file name may contain.
    no_text = any("\ud800" <= letter <= "\udfff" or letter in "\n\0" for letter in experiment)
    if Path(experiment).is_absolute() or ".." in parts or no_text:
        raise ValueError(
            f"experiment={experiment!r}: expected a name of folders below runs_dir, such as "
            "tiny/fewshot. To write elsewhere, set --runs_dir."
        )


def require_something_to_do(command: str, options: Any) -> None:
    """Refuse a trainer that would train, measure or predict nothing.

    Raises:
        ValueError: An option is 0.
    """
    for name in _ABOVE_ZERO[command]:
        tests = name == "limit_test_batches" and command == "fit"
        if options.trainer.get(name) != 0 or (tests and options.leave_out_test):
            continue
        remedy = " To train without a test, set --leave_out_test true." if tests else ""
        raise ValueError(
            f"trainer.{name}=0 leaves nothing to do for kora {command}: expected a number above 0."
            f"{remedy}"
        )


def add_run_options(parser: LightningArgumentParser) -> None:
    """Add these options to the parser of a command.

    All commands take all of them, as they read the config.yaml of a run; `resume` and `save`
    matter only to `fit`.
    """
    parser.add_argument("--experiment", type=str, default="default", help="Name of the runs.")
    parser.add_argument("--runs_dir", type=str, default="runs", help="Folder of all runs.")
    parser.add_argument(
        "--source",
        type=str | None,
        default=None,
        help="Config of a source stage: this run starts from its adapter, which is trained first "
        "if it does not exist yet.",
    )
    parser.add_argument(
        "--allow_degenerate",
        type=bool,
        default=False,
        help="Run even if the splits cannot support the metrics (published protocols).",
    )
    parser.add_argument(
        "--leave_out_test",
        type=bool,
        default=False,
        help="Do not test at the end of `fit`, as in the trials of a search. The record says so.",
    )
    parser.add_argument(
        "--pictures",
        type=bool,
        default=True,
        help="Draw learning curves, samples and classes. Without, a grid of quick runs saves about "
        "a second a run.",
    )
    parser.add_class_arguments(Wandb, "wandb")
    parser.add_argument(
        "--resume",
        type=bool | str,
        default=False,
        help="Resume the newest unfinished run of this config, or the run in a folder; `auto` "
        "begins a new one if there is none.",
    )
    parser.add_class_arguments(Saving, "save")
