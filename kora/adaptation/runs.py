"""Runs of `kora fit`, of which `kora adapt` is made: their configs, and running them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kora.adaptation.call import Call
from kora.adaptation.candidates import Candidate
from kora.adaptation.search import BATCH_SIZE
from kora.grid.file import SEED_OPTION, Job
from kora.grid.plan import resolved
from kora.grid.run import run_job
from kora.runs.durable import write_text
from kora.training.batched_fit import Setting

__all__ = ["THROUGH_BATCH_SIZE", "Setup", "finished_run", "model_config", "run_config"]

THROUGH_BATCH_SIZE = 32


@dataclass(frozen=True)
class Setup:
    """What all runs of a classification have in common.

    Args:
        call: The call of `kora adapt`.
        table: The split.
        root: Folder to which its paths are relative.
        backbone: Arguments of the backbone, in plain types.
        image_size: Height and width in pixels.
    """

    call: Call
    table: Path
    root: Path
    backbone: Mapping[str, Any]
    image_size: tuple[int, int]

    def config(
        self,
        candidate: Candidate,
        setting: Setting,
        *,
        epochs: int,
        through: bool,
        trial: bool = False,
        val_fold: int | None = None,
        precision: str = "32-true",
    ) -> dict[str, Any]:
        """The config of a run in plain types; it trains on all pictures but those of `val_fold`.

        Args:
            candidate: The strategy.
            setting: Learning rates and weight decay.
            epochs: Over the training pictures.
            through: It trains through the backbone.
            trial: Only validate it, do not test it.
            val_fold: The fold that validates.
            precision: Of the trainer.
        """
        table = {
            "table": str(self.table),
            "root": str(self.root),
            "image_size": list(self.image_size),
            "batch_size": THROUGH_BATCH_SIZE if through else BATCH_SIZE,
            "eval_batch_size": 64,
            "val_fraction": 0.0,
            "val_fold": val_fold,
            "num_workers": min(2, os.cpu_count() or 1),
        }
        model = model_config(
            self.call, "ClassificationTask", self.backbone, candidate, setting, head_init="zero"
        )
        return run_config(
            self.call, model, {"class_path": "datamodules.ImageTable", "init_args": table},
            epochs=epochs, precision=precision, trial=trial,
            # Trained again on all pictures, it cannot choose an epoch either.
            val_every=None if val_fold is None else epochs,
        )  # fmt: skip


def model_config(
    call: Call,
    task: str,
    backbone: Mapping[str, Any],
    candidate: Candidate,
    setting: Setting,
    **options: Any,
) -> dict[str, Any]:
    """The model of a run in plain types.

    Args:
        call: The call of `kora adapt`, in whose folder features are cached.
        task: Name of the task's class in `kora.tasks`.
        backbone: Arguments of the backbone.
        candidate: The strategy.
        setting: Learning rates and weight decay.
        **options: Further options of the task.
    """
    optimizer = {"lr": setting.lr, "weight_decay": setting.weight_decay}
    return {
        "class_path": f"kora.tasks.{task}",
        "init_args": {
            "backbone": dict(backbone),
            **candidate.model,
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": optimizer},
            "head_lr": setting.head_lr,
            **options,
            "feature_cache_folder": str(call.home / "features"),
        },
    }


def run_config(
    call: Call,
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    *,
    epochs: int,
    precision: str,
    trial: bool,
    val_every: int | None = None,
) -> dict[str, Any]:
    """The config of a run in plain types; a trial is not tested, and lies in a folder of trials."""
    return {
        "experiment": call.home.name + "_trials" * trial,
        "runs_dir": str(call.home.parent),
        "seed_everything": call.seed,
        "leave_out_test": trial,
        "pictures": not trial,
        "model": dict(model),
        "data": dict(data),
        "trainer": {
            "max_epochs": epochs,
            "check_val_every_n_epoch": val_every or max(1, epochs // 5),
            "precision": precision,
        },
        "wandb": {"mode": "disabled"},
    }


def finished_run(call: Call, name: str, config: Mapping[str, Any]) -> Path:
    """Run a config if it is not finished; returns the run folder.

    The config is written to `configs/<name>.yaml`, to look at and to run again.

    Raises:
        RuntimeError: It failed.
        StoppedError: A signal came.
    """
    file = call.home / "configs" / f"{name}.yaml"
    write_text(file, yaml.safe_dump(dict(config), sort_keys=False))
    job = Job(name, ("--config", str(file), f"{SEED_OPTION}{call.seed}"))
    log = call.home / "logs" / f"{name}.log"
    environment = dict(os.environ)
    outcome = run_job(
        job, resolved(file, job), stop=call.stop, say=lambda text: None, env=environment, log=log
    )
    call.require_no_signal()
    if outcome.folder is None:
        raise RuntimeError(
            f"{name}: {outcome.why} (see {log}). Repeat the command to resume from here."
        )
    return outcome.folder
