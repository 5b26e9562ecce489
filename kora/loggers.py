"""Where a run lies and who logs it: CSV first, then W&B, which never asks and never blocks."""

from __future__ import annotations

import netrc
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

__all__ = ["Wandb", "claim_run_folder", "make_loggers", "wandb_offline"]


@dataclass
class Wandb:
    """Weights & Biases.

    Args:
        mode: `auto` is online with a login and offline without; `disabled` leaves it out.
        project: Project of the runs.
        entity: Team or user; None is the default of the login.
    """

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "kora"
    entity: str | None = None


def claim_run_folder(parent: Path) -> Path:
    """Make the next free `version_<n>` folder; two processes never get the same one."""
    parent.mkdir(parents=True, exist_ok=True)
    taken = [int(p.name[8:]) for p in parent.glob("version_*") if p.name[8:].isdigit()]
    number = max(taken, default=-1) + 1
    if rank_zero_only.rank:  # type: ignore[attr-defined]  # the other ranks follow the first
        return parent / f"version_{max(taken, default=0)}"
    while True:
        folder = parent / f"version_{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def wandb_offline(mode: str) -> bool:
    """Whether W&B must stay offline: asked for, or no credentials are there."""
    if mode in ("online", "offline"):
        return mode == "offline"
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"] != "online"
    return not _has_credentials()


def _has_credentials() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def make_loggers(
    run_folder: Path, settings: Wandb, *, experiment: str, strategy: str, seed: int, stage: str
) -> list[Logger]:
    """CSV into the run folder itself, then W&B inside it. The first decides `trainer.log_dir`."""
    csv = CSVLogger(run_folder.parent, name="", version=run_folder.name)
    if settings.mode == "disabled" or os.environ.get("WANDB_MODE") == "disabled":
        return [csv]
    import wandb

    offline = wandb_offline(settings.mode)
    quiet: Any = wandb.Settings(silent=True) if offline else None
    wandb_logger = WandbLogger(
        name=f"{strategy}-seed{seed}",
        save_dir=run_folder,
        project=settings.project,
        entity=settings.entity,
        group=experiment,
        job_type=stage,
        tags=[strategy],
        offline=offline,
        settings=quiet,
    )
    wandb_logger._wandb_init.pop("anonymous", None)  # W&B warns of it, though nobody set it
    return [csv, wandb_logger]
