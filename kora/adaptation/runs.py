"""Runs of `kora fit`: the result of the search on all pictures, and fits through the backbone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kora.adaptation.candidates import Candidate
from kora.adaptation.search import BATCH_SIZE
from kora.grid.file import SEED_OPTION, Job
from kora.grid.plan import resolved
from kora.grid.run import run_job
from kora.runs.durable import write_text
from kora.runs.processes import Stop
from kora.training.batched_fit import Setting

__all__ = ["THROUGH_BATCH_SIZE", "Setup", "StoppedError", "run_of"]

THROUGH_BATCH_SIZE = 32


class StoppedError(RuntimeError):
    """A signal came; finished work is kept."""


@dataclass(frozen=True)
class Setup:
    """What all runs have in common.

    Args:
        out: The folder of everything that is made here.
        table: The split.
        root: Folder to which its paths are relative.
        backbone: Arguments of the backbone, in plain types.
        image_size: Height and width in pixels.
        seed: Of the runs.
    """

    out: Path
    table: Path
    root: Path
    backbone: Mapping[str, Any]
    image_size: tuple[int, int]
    seed: int

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
        optimizer = {"lr": setting.lr, "weight_decay": setting.weight_decay}
        return {
            "experiment": self.out.name + "_trials" * trial,
            "runs_dir": str(self.out.parent),
            "seed_everything": self.seed,
            "leave_out_test": trial,
            "model": {
                "class_path": "kora.tasks.ClassificationTask",
                "init_args": {
                    "backbone": dict(self.backbone),
                    **candidate.model,
                    "optimizer": {"class_path": "torch.optim.AdamW", "init_args": optimizer},
                    "head_lr": setting.head_lr,
                    "head_init": "zero",
                    "feature_cache_folder": str(self.out / "features"),
                },
            },
            "data": {"class_path": "datamodules.ImageTable", "init_args": table},
            "trainer": {
                "max_epochs": epochs,
                "check_val_every_n_epoch": max(1, epochs // 5),
                "precision": precision,
            },
            "wandb": {"mode": "disabled"},
        }


def run_of(
    out: Path, name: str, config: Mapping[str, Any], *, seed: int, stop: Stop
) -> tuple[Path | None, str]:
    """Run a config if it is not finished; returns the run folder, or None and the reason.

    The config is written to `out/configs/<name>.yaml`, to look at and to run again.
    """
    file = out / "configs" / f"{name}.yaml"
    write_text(file, yaml.safe_dump(dict(config), sort_keys=False))
    job = Job(name, ("--config", str(file), f"{SEED_OPTION}{seed}"))
    log = out / "logs" / f"{name}.log"
    environment = dict(os.environ)
    outcome = run_job(
        job, resolved(file, job), stop=stop, say=lambda text: None, env=environment, log=log
    )
    why = "" if outcome.folder is not None else f"{outcome.why} (see {log})"
    return outcome.folder, why
