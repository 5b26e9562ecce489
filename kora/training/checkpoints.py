"""How Lightning saves and loads checkpoints here: whole, checked, and without unpickling.

For remote file systems (`s3://...`) Lightning saves and loads, but without unpickling either.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from kora.adapters.checkpoint_files import read_checkpoint
from kora.console.say import say
from kora.runs.durable import remove_checked, require_room, sweep, write_atomically
from kora.tasks import AdapterTask

__all__ = [
    "CheckedCheckpointIO",
    "Saving",
    "best_and_last",
    "best_of",
    "relocate_checkpoints",
    "require_room_for_checkpoints",
    "with_checked_io",
]

_MIB = 2**20


class CheckedCheckpointIO(TorchCheckpointIO):
    """Saves atomically with a checksum; loads only intact files, and never pickled objects."""

    def __init__(self) -> None:
        self._swept: set[Path] = set()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; a failure leaves the previous one in place.

        Raises:
            OSError: It cannot be written.
        """
        if storage_options is not None:
            raise TypeError("storage_options would have no effect on checkpoints. Leave it out.")
        if _is_remote(path):
            super().save_checkpoint(checkpoint, path)
            return
        path = Path(path)
        if path.parent not in self._swept:
            sweep(path.parent)
            self._swept.add(path.parent)
        # In memory first: torch does not report a full disk as an OSError.
        content = io.BytesIO()
        torch.save(checkpoint, content)
        # On a requeue by SLURM, Lightning reads any number in a file name as that of a checkpoint.
        checksum = not path.name.startswith("hpc_ckpt_")
        write_atomically(path, lambda p: p.write_bytes(content.getbuffer()), checksum=checksum)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint; `weights_only=False` is ignored.

        Raises:
            RuntimeError: It is damaged, or holds pickled objects.
        """
        if weights_only is False:
            say("warning: weights_only=False is ignored: checkpoints are never unpickled.")
        if _is_remote(path):
            return super().load_checkpoint(path, map_location, weights_only=True)
        return read_checkpoint(path, map_location=map_location)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and its checksum."""
        if _is_remote(path):
            super().remove_checkpoint(path)
        else:
            remove_checked(Path(path))


@rank_zero_only
def require_room_for_checkpoints(folder: Path, task: AdapterTask) -> None:
    """Check before training that the folder has room for all that the run will write.

    Raises:
        OSError: Names how much is missing.
    """
    kept = sum(t.numel() * t.element_size() for t in task.kept_tensors().values())
    one = 3 * kept + _MIB  # with two moments of the optimiser
    # `best`, `last` and the one that is being written, the adapter, logs and pictures.
    require_room(folder, one, in_all=3 * one + kept + 4 * _MIB)


def with_checked_io(plugins: Any) -> list[Any]:
    """The plugins of a trainer, and our checkpoint IO.

    Raises:
        ValueError: One of them would save and load checkpoints in another way.
    """
    given = plugins if isinstance(plugins, list) else [] if plugins is None else [plugins]
    for plugin in given:
        if isinstance(plugin, CheckpointIO):
            raise ValueError(
                f"trainer.plugins: {type(plugin).__name__} would save and load checkpoints without "
                "their checksums. Leave it out."
            )
    return [*given, CheckedCheckpointIO()]


def _is_remote(path: str | Path) -> bool:
    return "://" in str(path)


@dataclass
class Saving:
    """How often `last.ckpt` is written within an epoch; at its end it always is.

    Args:
        every_minutes: Most minutes of training that a killed process can lose; null for never.
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


def best_of(trainer: Trainer) -> Any:
    """The callback that keeps `best.ckpt`; None without checkpoints.

    A config may have other callbacks that save, and Lightning would ask the first of all.
    """
    named = [one for one in trainer.checkpoint_callbacks if getattr(one, "filename", "") == "best"]
    return named[-1] if named else trainer.checkpoint_callback


def forget_foreign_checkpoints(state: dict[str, Any], run_folder: Path) -> None:
    """Drop paths outside of the run folder from what a ModelCheckpoint remembers.

    Lightning removes a remembered checkpoint when a better one comes, and a checkpoint of somebody
    else may remember any file or folder.
    """
    home = run_folder.resolve()

    def is_own(path: str) -> bool:
        return not _is_remote(path) and Path(path).resolve().is_relative_to(home)

    for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
        if state.get(key) and not is_own(state[key]):
            state[key] = ""
    kept = {path: score for path, score in state["best_k_models"].items() if is_own(path)}
    state["best_k_models"] = kept


def relocate_checkpoints(state: dict[str, Any], callback: ModelCheckpoint) -> None:
    """Point the paths that a ModelCheckpoint remembers to this run's folder.

    The best checkpoint so far must still count if the run resumes in another folder or the folder
    was moved; Lightning would forget it.
    """
    home = Path(str(callback.dirpath))

    def moved(path: str) -> str:
        return str(home / Path(path).name) if path else path

    state["dirpath"] = callback.dirpath
    for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
        state[key] = moved(state[key])
    state["best_k_models"] = {moved(path): score for path, score in state["best_k_models"].items()}
    if state["best_model_path"] and not Path(state["best_model_path"]).is_file():
        rank_zero_warn(
            f"{state['best_model_path']} is missing, so the best checkpoint so far is lost: the "
            "best from here on is chosen."
        )
        state.update(
            best_model_score=None, best_model_path="", best_k_models={}, kth_best_model_path="",
            kth_value=callback.kth_value,
        )  # fmt: skip
