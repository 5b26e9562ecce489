"""The folder and the loggers of a run: CSV first, then W&B, which never asks and never blocks."""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from kora.console.say import say
from kora.loggers.csv_log import RowByRow
from kora.loggers.wandb_run import (
    FINISH_S,
    START_S,
    BoundedWandb,
    keep_run_id,
    sweep_run_id,
    wandb_run_id,
)
from kora.loggers.wandb_server import has_credentials, server_answers, wandb_base_url
from kora.runs.durable import require_room
from kora.runs.results import claim_version, run_versions

__all__ = ["Wandb", "claim_run_folder", "make_loggers", "wandb_offline"]

_LEAST_ROOM = 2**20  # bytes, for the config, the splits and a record


@dataclass
class Wandb:
    """Weights & Biases.

    Args:
        mode: `auto` is online with a login and offline without; `disabled` leaves it out.
        project: Project of the runs; None is `WANDB_PROJECT`, or else `kora`.
        entity: Team or user; None is the default of the login.
        job_type: What the run is for; None is the command (`fit`, `test` or `validate`), and a
            source stage that another run starts is `source`.
        upload_adapter: Log the adapter of the best checkpoint as an artifact at the end of `fit`.
        finish_s: Seconds that the end of a run waits for the upload; the whole end takes at most
            two and a half times as long.
    """

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str | None = None
    entity: str | None = None
    job_type: str | None = None
    upload_adapter: bool = True
    finish_s: float = FINISH_S

    def __post_init__(self) -> None:
        if not self.finish_s > 0:
            raise ValueError(f"wandb.finish_s is {self.finish_s}; it must be above 0.")


def claim_run_folder(parent: Path) -> Path:
    """Make the next free `version_<n>` folder; two processes never get the same one.

    Raises:
        OSError: It cannot be made or written into (read-only, disk full): nothing would be kept.
    """
    try:
        folder = _claim(parent)
    except OSError as error:
        raise OSError(
            f"No run folder can be made in {parent}: {error.strerror}. Set --runs_dir to a folder "
            "that can be written to."
        ) from error
    if not rank_zero_only.rank:  # type: ignore[attr-defined]
        try:
            require_room(folder, _LEAST_ROOM)
        except OSError:
            folder.rmdir()
            raise
    return folder


def _claim(parent: Path) -> Path:
    if rank_zero_only.rank:  # type: ignore[attr-defined]  # the other ranks follow the first
        return parent / f"version_{max(run_versions(parent), default=0)}"
    return claim_version(parent)


def wandb_offline(mode: str) -> bool:
    """Whether W&B must stay offline: on request, or without credentials.

    Raises:
        ValueError: online was asked for without credentials: W&B would ask, and wait.
    """
    asked = mode if mode in ("online", "offline") else os.environ.get("WANDB_MODE")
    if not asked:
        return not has_credentials()
    if asked != "online":
        return True
    if not has_credentials():
        raise ValueError(
            "W&B is to be online (wandb.mode or WANDB_MODE), but there is no login. Run "
            "`wandb login` once, set WANDB_API_KEY, or use --wandb.mode offline."
        )
    return False


def _names_wandb() -> bool:
    """Whether the environment sets a variable of W&B, as a user of W&B would."""
    return any(os.environ.get(name) for name in ("WANDB_MODE", "WANDB_BASE_URL", "WANDB_PROJECT"))


def make_loggers(
    run_folder: Path,
    settings: Wandb,
    *,
    experiment: str,
    strategy: str,
    seed: int,
    stage: str,
    resumed: Path | None = None,
) -> list[Logger]:
    """CSV into the run folder itself, then W&B inside it. The first decides `trainer.log_dir`.

    If the checkpoint `resumed` is given, the W&B run of the run that wrote it continues.
    """
    csv = RowByRow(run_folder.parent, name="", version=run_folder.name)
    mode = os.environ.get("WANDB_MODE") if settings.mode == "auto" else settings.mode
    if mode == "disabled":
        return [csv]
    offline, server = wandb_offline(settings.mode), wandb_base_url()
    began = time.monotonic()
    if not offline and not server_answers(server):
        say(f"W&B at {server} does not answer: this run is logged offline.")
        offline = True  # W&B would wait a minute and a half, and then stop the run
    start_s = START_S - (time.monotonic() - began)
    before = None if resumed is None else wandb_run_id(resumed)
    run_id = sweep_run_id() or before or secrets.token_hex(4)
    keep_run_id(run_folder, run_id)
    return [
        csv,
        BoundedWandb(
            offline=offline,
            id=run_id,
            name=f"{strategy}-seed{seed}",
            save_dir=run_folder,
            project=settings.project or os.environ.get("WANDB_PROJECT") or "kora",
            entity=settings.entity,
            group=f"{experiment}/{strategy}",  # W&B draws the mean over the seeds of a group
            job_type=settings.job_type or stage,
            tags=[strategy],
            config={"strategy": strategy, "seed": seed},
            upload_adapter=settings.upload_adapter,
            start_s=start_s,
            finish_s=settings.finish_s,
            unasked=settings.mode == "auto" and not (_names_wandb() or has_credentials()),
        ),
    ]
