"""What has changed since a checkpoint was written: shown, applied, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lightning import Trainer
from torch.optim.lr_scheduler import LambdaLR

from kora.console.say import say
from kora.lightning_internals import train_loaders
from kora.runs.config import flat, with_defaults

__all__ = ["Settings", "changes", "settings_of", "was_typed"]

#: Options that decide the length and the shape of a schedule.
_SCHEDULE = {
    "trainer.max_epochs", "trainer.max_steps", "trainer.accumulate_grad_batches",
    "trainer.limit_train_batches", "trainer.devices", "trainer.num_nodes", "data.batch_size",
    "model.schedule", "model.warmup_fraction",
}  # fmt: skip

#: Settings that decide which images the next batch of an epoch holds.
_ORDER = {
    "world_size": "processes (trainer.devices)",
    "batch_size": "images a batch (data.batch_size)",
    "accumulate": "batches a step (trainer.accumulate_grad_batches)",
    "batches": "batches an epoch (trainer.limit_train_batches)",
}

_NOT_SETTINGS = ("ckpt_path", "weights_only", "resume", "config")


@dataclass
class Settings:
    """The settings of a run in plain types, which its checkpoints keep.

    Args:
        seed: Seed of the run.
        world_size: Number of processes.
        accumulate: Batches per optimiser step.
        schedule: Its name, the share of the warm-up, and the total of optimiser steps.
        optimizer: Class of the optimiser.
        groups: Settings of its parameter groups, as the config gives them.
        images: SHA-256 of the choice of training and of validation images, if known.
        config: The resolved config.
        batch_size: Images per batch of one process.
        batches: Batches per epoch of one process.
    """

    seed: int
    world_size: int
    accumulate: int
    schedule: tuple[str, float, int]
    optimizer: str
    groups: list[dict[str, Any]]
    images: dict[str, str]
    config: dict[str, Any]
    batch_size: int | None = None
    batches: float = 0

    def know_loader(self, trainer: Trainer) -> None:
        """Read what only the data loader knows, once training begins."""
        for loader in train_loaders(trainer)[:1]:
            self.batch_size = getattr(loader, "batch_size", None)
        self.batches = trainer.num_training_batches

    def to_dict(self) -> dict[str, Any]:
        """The settings as a checkpoint holds them."""
        return asdict(self)

    def check_finished(self, resumed: Mapping[str, Any]) -> None:
        """Refuse other settings of a training of which nothing is left.

        Args:
            resumed: Epoch, number of finished batches in it, and settings of the checkpoint.

        Raises:
            ValueError: Names what cannot be changed, and the remedy.
        """
        old = resumed["settings"]
        self._check_identity(old)
        for key, (before, now) in changes(
            with_defaults(old["config"]), with_defaults(self.config)
        ).items():
            length = key in _SCHEDULE - {"trainer.devices", "trainer.num_nodes"}
            if length or (key.startswith("model.") and "feature_cache" not in key):
                raise ValueError(
                    f"The checkpoint has nothing left to train (epoch {resumed['epoch']}), so "
                    f"{key} {before!r} -> {now!r} would change the record alone. Leave it as it "
                    "was, raise trainer.max_epochs to train on, or begin a new run without "
                    "--resume and --ckpt_path."
                )

    def check(self, resumed: Mapping[str, Any], typed: set[str]) -> None:
        """Show what differs from a checkpoint's settings; refuse what a resume cannot change.

        Args:
            resumed: Epoch, number of finished batches in it, and settings of the checkpoint.
            typed: Options that were typed on the command line.

        Raises:
            ValueError: Names what cannot be changed, and the remedy.
        """
        old = resumed["settings"]
        different = changes(with_defaults(old["config"]), with_defaults(self.config))
        place = f"epoch {resumed['epoch']}, {resumed['batches']} of {old['batches']} batches done"
        lines = [f"  {key}: {before!r} -> {now!r}" for key, (before, now) in different.items()]
        shown = "Changed since the checkpoint:\n" + "\n".join(lines)
        say(f"resuming ({place}). {shown if lines else 'Nothing changed.'}")
        self._check_identity(old)
        if resumed["batches"]:
            self._check_order(old)
        self._check_schedule(old, typed, different)

    def _check_identity(self, old: Mapping[str, Any]) -> None:
        for name, before, now, remedy in (
            ("the training and validation images", old["images"], self.images, ""),
            (
                "model.optimizer",
                (old["optimizer"], len(old["groups"])),
                (self.optimizer, len(self.groups)),
                ", or keep only the weights (model.adapter_from)",
            ),
        ):
            if before != now:
                raise ValueError(
                    f"A resume cannot change {name}: {before} in the checkpoint, {now} here. "
                    f"Leave it as it was, or begin a new run without --ckpt_path{remedy}."
                )

    def _check_order(self, old: Mapping[str, Any]) -> None:
        for key, words in _ORDER.items():
            before, now = old[key], getattr(self, key)
            if before != now:
                raise ValueError(
                    f"The checkpoint is within an epoch of {before} {words}; this run has {now}, "
                    "so the remaining images of the epoch are not known. Finish the epoch with the "
                    "old setting, and change it after that."
                )

    def _check_schedule(
        self, old: Mapping[str, Any], typed: set[str], different: Mapping[str, Any]
    ) -> None:
        before: tuple[str, float, int] = tuple(old["schedule"])
        now = self.schedule
        if before == now or (before[0] == now[0] == "constant" and before[1] == now[1] == 0):
            return
        if any(was_typed(key, typed) for key in different if key in _SCHEDULE):
            say(
                f"the schedule is now {_schedule(now)}, instead of {_schedule(before)}; the "
                "learning rate continues at the same step of the new one."
            )
            return
        raise ValueError(
            f"The schedule here is {_schedule(now)}, and {_schedule(before)} in the checkpoint: "
            "the learning rate would jump. If you want that, give the change on the command line "
            "(such as --trainer.max_epochs); otherwise leave the config as it was, or use "
            "model.schedule: constant."
        )

    def apply(self, trainer: Trainer, old: Mapping[str, Any]) -> None:
        """Apply changed settings of optimiser and schedule, which the checkpoint has just reset.

        Only what differs between the two: some optimisers keep state of their own with the rest.
        """
        optimizer = trainer.optimizers[0]
        rates_change = tuple(old["schedule"]) != self.schedule
        for group, before, now in zip(
            optimizer.param_groups, old["groups"], self.groups, strict=True
        ):
            for key, value in now.items():
                if key not in before or before[key] != value:
                    group[key] = value
                    rates_change |= key == "initial_lr"
        if not rates_change:
            return
        for config in trainer.lr_scheduler_configs:
            scheduler = config.scheduler
            if isinstance(scheduler, LambdaLR):
                scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
                factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
                for group, base, factor in zip(
                    optimizer.param_groups, scheduler.base_lrs, factors, strict=True
                ):
                    group["lr"] = base * factor
                scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
        rates = ", ".join(f"{group['lr']:.4g}" for group in optimizer.param_groups)
        say(f"the learning rate continues at {rates}.")


def settings_of(trainer: Trainer, config: Mapping[str, Any], *, seed: int) -> Settings:
    """The settings of a run whose optimiser has been made, but not restored yet."""
    task, optimizer = trainer.lightning_module, trainer.optimizers[0]
    protocol: Any = getattr(trainer.datamodule, "protocol", dict)()  # type: ignore[attr-defined]
    plain: Any = (bool, int, float, str, type(None), tuple)
    return Settings(
        seed=seed,
        world_size=trainer.world_size,
        accumulate=trainer.accumulate_grad_batches,
        schedule=(
            str(getattr(task, "schedule", "")),
            float(getattr(task, "warmup_fraction", 0)),
            int(trainer.estimated_stepping_batches),
        ),
        optimizer=type(optimizer).__qualname__,
        groups=[
            {k: v for k, v in group.items() if k not in ("params", "lr") and isinstance(v, plain)}
            for group in optimizer.param_groups
        ],
        images={k: v for k, v in protocol.get("sha256", {}).items() if k in ("train", "val")},
        config=dict(config),
    )


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two configs: by dotted name, the values before and now."""
    old, new = (
        flat({k: v for k, v in one.items() if k not in _NOT_SETTINGS}) for one in (before, now)
    )
    return {
        key: (old.get(key), new.get(key))
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    }


def was_typed(key: str, typed: set[str]) -> bool:
    """Whether an option, or a group that contains it, was typed on the command line."""
    return any(key == option or key.startswith(f"{option}.") for option in typed)


def _schedule(schedule: tuple[str, float, int]) -> str:
    name, warmup, steps = schedule
    return f"'{name}' over {steps} steps with a warm-up of {warmup:g}"
