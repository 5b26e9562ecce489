"""The state of training between two optimiser steps: saved, and resumed bit for bit.

Everything random is a function of seed, epoch and batch: the order of the images and their
augmentation in `datamodules.sampling`, and the generators here, which are reseeded at every
training batch. So a checkpoint holds no state of generators, and draws between two batches (by a
validation, a starting worker, a metric) make no difference.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from kora.console.say import say
from kora.lightning_internals import (
    Loop,
    Progress,
    accumulates,
    end_restart,
    full_checkpoint,
    train_loaders,
    validation_is_due,
)
from kora.loggers.csv_log import count_rows
from kora.tasks import AdapterTask
from kora.training.checkpoints import (
    Saving,
    forget_foreign_checkpoints,
    relocate_checkpoints,
    require_room_for_checkpoints,
)
from kora.training.preemption import Preemption
from kora.training.resume import how_to_go_on
from kora.training.resume_changes import Settings, settings_of

__all__ = ["TrainingState", "loop_state", "seed_batch"]


def seed_batch(seed: int, *, epoch: int, batch: int, rank: int, device: torch.device) -> None:
    """Seed Python, NumPy and torch for a training batch of a process."""
    numbers = np.random.SeedSequence([seed, epoch, batch, rank]).generate_state(3)
    random.seed(int(numbers[0]))
    np.random.seed(numbers[1])  # noqa: NPY002 (the generator that others use)
    torch.default_generator.manual_seed(int(numbers[2]))
    # torch.manual_seed alone would do all of this, but it also notes the seed with a stack trace
    # for every kind of device that is not in use, which takes milliseconds.
    if device.type == "cuda":
        torch.cuda.manual_seed_all(int(numbers[2]))
    elif device.type != "cpu":
        torch.manual_seed(int(numbers[2]))


class TrainingState(Callback):
    """Saves `last.ckpt` within an epoch, at SIGTERM and at an error, and resumes from it.

    The state is always that after a whole optimiser step: the loops' counters are kept from there,
    and weights, optimiser and schedule have not changed since. An error within the optimiser's own
    step leaves the last checkpoint as it is.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seed: int,
        config: Mapping[str, Any],
        typed: set[str],
        saving: Saving,
    ) -> None:
        self.folder = folder
        self.seed = seed
        self.config = dict(config)
        self.typed = typed
        self.saving = saving
        self.preemption = Preemption()
        self.last = folder / "checkpoints" / "last.ckpt"
        self._loops: dict[str, Any] | None = None  # of the fit loop, after the last whole step
        self._validated: dict[str, Any] | None = None  # the same, once its validation is done
        self._use_kept_loops = False
        self._stepping = False
        self._settings: Settings | None = None
        self._resumed: dict[str, Any] | None = None
        self._trains = False  # whether the loop began: it does not if no epoch is left
        self._saved_at = 0.0
        self._saved_step = 0

    # -- before training -----------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """From here on, SIGTERM sets a flag that the loops check."""
        self.folder = trainer.strategy.broadcast(self.folder)  # srun's processes can only guess it
        self.preemption.attach(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reset the signal handlers."""
        self.preemption.detach()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note this run's settings before a checkpoint restores those of its own run.

        Raises:
            OSError: The folder has no room for the checkpoints.
        """
        assert isinstance(pl_module, AdapterTask)
        require_room_for_checkpoints(self.folder, pl_module)
        self._settings = settings_of(trainer, self.config, seed=self.seed)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Read the place of the checkpoint in its epoch, and adjust callbacks to this run."""
        if trainer.state.fn != "fit":
            return
        self._resumed = checkpoint.get("resume")
        if self._resumed is None:
            rank_zero_warn(
                "The checkpoint does not record its place in the epoch (an older version of kora "
                "wrote it): a resume in mid-epoch does not get the images that would come next."
            )
        restored = checkpoint["callbacks"]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ModelCheckpoint) and callback.state_key in restored:
                if callback.filename == "best":
                    relocate_checkpoints(restored[callback.state_key], callback)
                forget_foreign_checkpoints(restored[callback.state_key], self.folder)
            elif isinstance(callback, EarlyStopping) and callback.state_key in restored:
                restored[callback.state_key]["patience"] = callback.patience  # as it is set now

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse changes that a resume cannot make, apply the others, and find the next image.

        Raises:
            ValueError: Names what has changed since the checkpoint, and the remedy.
        """
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        assert self._settings is not None
        self._settings.know_loader(trainer)
        self._trains = True
        if self._resumed is None:
            return
        self._settings.check(self._resumed, self.typed)
        self._settings.apply(trainer, self._resumed["settings"])
        epoch, batches = self._resumed["epoch"], self._resumed["batches"]
        if trainer.fit_loop.max_steps != -1 and not batches:
            _start_epoch_anew(trainer)
        for loader in train_loaders(trainer):
            sampler = loader.sampler
            if hasattr(sampler, "start_at"):
                sampler.start_at(epoch, batches * loader.batch_size)
            elif batches:
                rank_zero_warn(
                    f"{type(sampler).__name__} cannot start in mid-epoch: the rest of this epoch "
                    "sees other images than without the interruption."
                )

    # -- training ------------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is due, stop if told to, and seed the batch."""
        if self._loops is not None and self._validated is not None:
            self._loops, self._validated = self._validated, None
        if self._loops is not None and not batch_idx % trainer.accumulate_grad_batches:
            self._pause(trainer, due=self._is_due(trainer))
        progress: Any = trainer.fit_loop.epoch_progress.current
        seed_batch(
            self.seed,
            epoch=progress.processed,
            batch=batch_idx,
            rank=trainer.global_rank,
            device=trainer.strategy.root_device,
        )

    def on_before_optimizer_step(self, *args: Any) -> None:
        """Note that weights and optimiser are about to change."""
        self._stepping = True

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Keep the loops' counters after a whole step."""
        if not accumulates(trainer):
            self._stepping = False
            self._validated = loop_state(trainer.fit_loop)
            self._loops = _with_validation_to_do(trainer, self._validated)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the loops' counters between two epochs."""
        self._loops, self._validated = loop_state(trainer.fit_loop), None
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step  # others save

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is left to save."""
        self._loops = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse changes of a training that was over: they would change its record alone.

        Raises:
            ValueError: Names what has changed since the checkpoint, and the remedy.
        """
        if self._resumed is not None and not self._trains:
            assert self._settings is not None
            self._settings.check_finished(self._resumed)

    def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Stop a validation if told to; a resume repeats it."""
        if trainer.state.fn == "fit":
            self._pause(trainer, due=False)

    def on_test_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Stop a test if told to."""
        self._pause(trainer, due=False)

    def _is_due(self, trainer: Trainer) -> bool:
        minutes, steps = self.saving.every_minutes, self.saving.every_steps
        made = trainer.global_step - self._saved_step
        late = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        return made > 0 and (late or (steps is not None and made >= steps))

    def _pause(self, trainer: Trainer, *, due: bool) -> None:
        stop, due = self.preemption.agree(trainer, due=due)
        if (due or stop) and self._loops is not None:
            self._save(trainer)
        if stop:
            say(self._stop_message(self.preemption.end(trainer), trainer.global_step))
            raise SIGTERMException(self.preemption.exit_code(trainer))

    def _stop_message(self, why: str, step: int) -> str:
        if not self.last.is_file():
            return f"{why} before the first optimiser step: there is nothing to resume."
        return f"{why} after step {step}. To resume:\n{how_to_go_on(self.folder)}"

    # -- saving --------------------------------------------------------------------------------

    def _save(self, trainer: Trainer, *, alone: bool = False) -> None:
        """Write `last.ckpt`; `alone` when the other processes may be gone or elsewhere."""
        self._use_kept_loops = True
        try:
            if alone:
                trainer.strategy.save_checkpoint(full_checkpoint(trainer), self.last)
            else:
                trainer.save_checkpoint(self.last, weights_only=False)
        finally:
            self._use_kept_loops = False
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Record the checkpoint's place in its epoch, and the settings of the run."""
        if self._use_kept_loops:
            checkpoint["loops"]["fit_loop"] = self._loops
        epoch, batches = _place(checkpoint["loops"]["fit_loop"])
        assert self._settings is not None
        checkpoint["resume"] = {
            "epoch": epoch,
            "batches": batches,
            "rows": count_rows(self.folder / "metrics.csv"),
            "settings": self._settings.to_dict(),
        }

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Save the last whole step before an error or Ctrl-C, and say how to resume."""
        if isinstance(exception, SIGTERMException) or trainer.state.fn != "fit":
            return
        can_save_alone = trainer.world_size == 1 or isinstance(trainer.strategy, DDPStrategy)
        if self._loops is not None and not self._stepping and can_save_alone:
            self._save(trainer, alone=True)
        if not isinstance(exception, KeyboardInterrupt) and self.last.is_file():
            say(self._stop_message("stopped by an error", self._saved_step))


def _place(loops: Mapping[str, Any]) -> tuple[int, int]:
    """Epoch, and number of finished batches in it."""
    epoch = loops["epoch_progress"]["current"]
    if epoch["ready"] == epoch["processed"]:
        return epoch["processed"], 0
    return epoch["processed"], loops["epoch_loop.batch_progress"]["current"]["ready"]


def _with_validation_to_do(trainer: Trainer, state: dict[str, Any]) -> dict[str, Any]:
    """The fit loop's counters after a batch, changed if a validation comes next.

    Lightning would take a validation that was due at the saved batch as done. So the counters say
    that it was stopped in its first batch.
    """
    if validation_is_due(trainer):
        state = copy.deepcopy(state)
        for count in ("total", "current"):
            state["epoch_loop.batch_progress"][count]["completed"] += 1
            state["epoch_loop.val_loop.batch_progress"][count] = {
                "ready": 1, "started": 1, "processed": 0, "completed": 0,
            }  # fmt: skip
        state["epoch_loop.val_loop.batch_progress"]["is_last_batch"] = False
    return state


def _start_epoch_anew(trainer: Trainer) -> None:
    """Begin the next epoch: with max_steps, Lightning would finish the last one a second time."""
    progress: Any = trainer.fit_loop.epoch_progress
    for count in (progress.total, progress.current):
        count.ready = count.started = count.completed = count.processed
    loop = trainer.fit_loop
    loop.reset_restart_stage()
    end_restart(loop, loop.epoch_loop, loop.epoch_loop.val_loop)


def loop_state(loop: Loop, prefix: str = "") -> dict[str, Any]:
    """What `loop.state_dict(prefix=prefix)` gives, without deep copies of single numbers.

    Lightning copies every counter with `dataclasses.asdict`, which was most of that call's time.
    """
    found: dict[str, Any] = {f"{prefix}state_dict": loop.on_save_checkpoint()}
    for name, part in vars(loop).items():
        if isinstance(part, Progress):
            found[prefix + name] = _numbers(part)
        elif isinstance(part, Loop):
            found |= loop_state(part, f"{prefix}{name}.")
    return found


def _numbers(progress: Any) -> dict[str, Any]:
    return {
        name: _numbers(value) if is_dataclass(value) else value
        for name, value in vars(progress).items()
    }
