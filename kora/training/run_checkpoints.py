"""The checkpoints that a run keeps: `best.ckpt` and `last.ckpt`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

from kora.adapters.checkpoint_files import read_checkpoint

__all__ = ["Saving", "best_and_last", "bring_home", "load_best"]


@dataclass
class Saving:
    """How often `last.ckpt` is written within an epoch; at its end it always is.

    Args:
        every_minutes: Minutes of training that a killed process loses at most; null for never.
        every_steps: Optimiser steps after which it is written; null leaves it to the clock.
    """

    every_minutes: float | None = 5.0
    every_steps: int | None = None

    def __post_init__(self) -> None:
        for name, value in (
            ("every_minutes", self.every_minutes),
            ("every_steps", self.every_steps),
        ):
            if value is not None and value <= 0:
                raise ValueError(
                    f"save.{name} is {value}; it must be above 0. For no checkpoint within an "
                    "epoch, set it to null."
                )


def best_and_last(
    folder: Path, monitor: tuple[str, str], *, validates: bool
) -> list[ModelCheckpoint]:
    """`best.ckpt` by validation and `last.ckpt` of every epoch, whether or not it was better.

    (`save_last` of one ModelCheckpoint writes only when the monitored metric has improved.)
    """
    common: dict[str, Any] = {"dirpath": folder / "checkpoints", "enable_version_counter": False}
    if not validates:
        return [ModelCheckpoint(filename="best", save_last=True, **common)]
    quantity, mode = monitor
    return [
        ModelCheckpoint(filename="best", monitor=quantity, mode=mode, **common),
        ModelCheckpoint(filename="last", save_on_train_epoch_end=True, **common),
    ]


def bring_home(state: dict[str, Any] | None, callback: ModelCheckpoint) -> None:
    """Let what a ModelCheckpoint remembers name the files of this run's folder.

    The best so far must win in the end, also where the run goes on in another folder or the folder
    was moved; Lightning forgets it there.
    """
    if state is None:
        return
    home = Path(str(callback.dirpath))

    def moved(path: str) -> str:
        return str(home / Path(path).name) if path else path

    state["dirpath"] = callback.dirpath
    for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
        state[key] = moved(state[key])
    state["best_k_models"] = {moved(path): score for path, score in state["best_k_models"].items()}
    if state["best_model_path"] and not Path(state["best_model_path"]).is_file():
        rank_zero_warn(
            f"{state['best_model_path']} is not there, so that the best checkpoint so far cannot "
            "be kept: the best from here on is chosen."
        )
        state.update(
            best_model_score=None, best_model_path="", best_k_models={}, kth_best_model_path="",
            kth_value=callback.kth_value,
        )  # fmt: skip


def load_best(module: LightningModule, path: str | None) -> None:
    """Give the module what its best checkpoint holds, as a test would; None leaves it as it is."""
    if path is not None:
        module.load_state_dict(read_checkpoint(path)["state_dict"])
