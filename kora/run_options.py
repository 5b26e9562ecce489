"""The options of a run that are neither model, data nor trainer."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.cli import LightningArgumentParser

from kora.loggers import Wandb
from kora.run_checkpoints import Saving

__all__ = ["add_run_options", "require_below"]


def require_below(experiment: str, runs_dir: str) -> None:
    """Refuse names by which runs would lie outside of `runs_dir`, or that a library expands.

    Raises:
        ValueError: It is such a one.
    """
    # fsspec, by which Lightning writes checkpoints, takes ~, :: and :// for its own signs.
    if runs_dir.startswith("~") or "://" in runs_dir or "::" in str(Path(runs_dir).absolute()):
        raise ValueError(
            f"runs_dir={runs_dir!r}: expected a folder of this machine, without ~, :: and ://. "
            "Write its whole path."
        )
    if "::" in experiment:
        raise ValueError(f"experiment={experiment!r}: a name with :: is no folder's; use -.")
    if Path(experiment).is_absolute() or ".." in Path(experiment).parts or "\n" in experiment:
        raise ValueError(
            f"experiment={experiment!r}: expected a name of folders below runs_dir, such as "
            "tiny/fewshot. To write elsewhere, set --runs_dir."
        )


def add_run_options(parser: LightningArgumentParser) -> None:
    """Add them to the parser of a command.

    All commands take all of them, as they are given the config.yaml of a run; `resume` and `save`
    matter to `fit` alone.
    """
    parser.add_argument("--experiment", type=str, default="default", help="Name of the runs.")
    parser.add_argument("--runs_dir", type=str, default="runs", help="Folder of all runs.")
    parser.add_argument(
        "--source",
        type=str | None,
        default=None,
        help="Config of a source stage: its adapter is the start of this run, and is trained "
        "first if it is not there yet.",
    )
    parser.add_argument(
        "--allow_degenerate",
        type=bool,
        default=False,
        help="Run although the splits cannot support the metrics (published protocols).",
    )
    parser.add_argument(
        "--leave_out_test",
        type=bool,
        default=False,
        help="Do not test at the end of `fit`, as in the trials of a search. The record says so.",
    )
    parser.add_class_arguments(Wandb, "wandb")
    parser.add_argument(
        "--resume",
        type=bool | str,
        default=False,
        help="Go on with the newest unfinished run of this config, or with the run in a "
        "folder; `auto` begins a new one where there is none.",
    )
    parser.add_class_arguments(Saving, "save")
