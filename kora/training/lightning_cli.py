"""`kora fit | validate | test | predict` on LightningCLI."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

from jsonargparse import Namespace
from lightning import LightningDataModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

import datamodules.classes  # noqa: F401  (so that short class names are known)
from kora.adapters.checkpoint_files import choose_checkpoint, read_checkpoint
from kora.backbone.weights import matrices_on_disk
from kora.console.say import say
from kora.lightning_internals import Cli
from kora.loggers.run_folder import claim_run_folder, make_loggers
from kora.runs.config_files import find_config
from kora.runs.lock import RunLock
from kora.tasks import AdapterTask
from kora.tasks.ranks import in_one_list
from kora.training.checkpoints import best_and_last, best_of, with_checked_io
from kora.training.clock import RunClock
from kora.training.guards import FiniteGuard
from kora.training.node_gradients import NodeGradients
from kora.training.nodes import refuse_other_processes
from kora.training.parser import KoraParser, fill_image_size, of_the_parser, remembering
from kora.training.progress import ProgressBar, without_noise
from kora.training.record import OutcomeRecord, RunRecord
from kora.training.resume import (
    after_interruption,
    checkpoint_to_resume,
    own_folder,
    resume_arguments,
    take_over,
    typed_options,
)
from kora.training.run_options import add_run_options, require_below, require_something_to_do
from kora.training.stages import SourceStages, plain
from kora.training.state import TrainingState

__all__ = ["KoraCLI", "parse", "run_lightning"]


class KoraCLI(Cli):
    """LightningCLI with a run folder, the record of the run, and source stages."""

    command: ClassVar[str] = "fit"

    def __init__(self, args: Sequence[str]) -> None:
        type(self).command = args[0]
        self.run_folder: Path | None = None
        self.record: RunRecord | None = None
        self.lock: RunLock | None = None
        self.typed = typed_options(args)
        if self.command == "fit":
            args = resume_arguments(args)
        try:
            super().__init__(
                AdapterTask,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,  # kora.load_adapter reads the run
                save_config_callback=None,
                seed_everything_default=0,
                trainer_defaults={"enable_model_summary": False, "log_every_n_steps": 5},
                parser_class=KoraParser,
                args=list(args),
            )
        except Exception:
            self._discard_unused_folder()
            raise

    def _discard_unused_folder(self) -> None:
        """Remove the run folder of a command that was refused before it did anything."""
        folder = self.run_folder
        if self.lock is not None:
            self.lock.release()
        if folder is None or rank_zero_only.rank:  # type: ignore[attr-defined]
            return
        if not any((folder / name).exists() for name in ("metrics.csv", "checkpoints", "wandb")):
            shutil.rmtree(folder, ignore_errors=True)

    @classmethod
    def subcommands(cls) -> dict[str, set[str]]:
        """Only the requested command: building each parser takes most of a second."""
        return {cls.command: LightningCLI.subcommands()[cls.command]}

    def setup_parser(self, *args: Any, **options: Any) -> None:
        """Build the parser, or take the one that is remembered."""
        noted = of_the_parser(self.command)
        if not noted:
            before = set(vars(self))
            super().setup_parser(*args, **options)
            noted |= {name: it for name, it in vars(self).items() if name not in before}
        vars(self).update(noted)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The options of a run that are neither model, data nor trainer."""
        add_run_options(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse and check the options; without a seed, a run could not be repeated.

        By the parser of the command alone: the one around it, which prints the config if that is
        asked for, would parse everything once more.
        """
        command, *words = args
        with remembering():
            if any(word.startswith("--print_config") for word in words):
                super().parse_arguments(parser, args)
            options = self.parser_of(command).parse_args(words)
        self.config = Namespace({command: options, "subcommand": command})  # type: ignore[no-untyped-call]
        for group in ("trainer", "wandb", "save"):
            found = options.get(group)
            if not hasattr(found, "items"):
                raise ValueError(f"{group} is {found!r}, expected options by name.")
        for key in ("experiment", "runs_dir"):
            found = options.get(key)
            if not isinstance(found, str):
                raise ValueError(f"{key} is {found!r}, expected text.")
        require_below(options.experiment, options.runs_dir)
        kind = str((options.get("model") or {}).get("class_path"))
        if kind.endswith(".AdapterTask"):  # the base, which options of the model imply
            raise ValueError("model: it names no class. Set model.class_path to a task of kora.")
        seed = options.seed_everything
        if isinstance(seed, bool | None) or not 0 <= seed < 2**32:
            raise ValueError(
                f"seed_everything={seed}: every run has a seed, so that it can be run again. Give "
                "a number from 0 to 4294967295."
            )
        fill_image_size(options)

    @property
    def options(self) -> Any:
        """The parsed options of the command."""
        return self.config[self.command]

    def before_instantiate_classes(self) -> None:
        """Refuse what cannot work, before anything is built."""
        require_something_to_do(self.command, self.options)
        if self.command != "fit" and not self.options.get("ckpt_path"):
            raise ValueError(
                f"kora {self.command} needs --ckpt_path: without it the head is untrained. Use "
                "runs/<experiment>/<strategy>/seed<k>/version_<n>/checkpoints/best.ckpt with the "
                "config.yaml of that run."
            )
        if self.command == "fit" and self.options.resume:
            self.options.ckpt_path = checkpoint_to_resume(self.options, self.resolved(), self.typed)
        ckpt_path = self.options.get("ckpt_path")
        if ckpt_path and not (Path(ckpt_path).is_file() and Path(ckpt_path).suffix == ".ckpt"):
            raise FileNotFoundError(
                f"Checkpoint {ckpt_path} does not exist, or is no .ckpt file. A run keeps its "
                "checkpoints in runs/<experiment>/<strategy>/seed<k>/version_<n>/checkpoints."
            )
        if ckpt_path:
            chosen, why = choose_checkpoint(Path(ckpt_path), resume=self.command == "fit")
            if why is not None:
                say(f"warning: {why}")
            self.options.ckpt_path = str(chosen)
        source = self.options.get("source")
        if source is not None and self.options.model.init_args.get("adapter_from") is not None:
            raise ValueError(
                "source and model.adapter_from are both set, and each names the adapter to start "
                "from. Leave one of them out (--source null)."
            )
        if source is not None and not Path(find_config(source)).is_file():
            raise FileNotFoundError(
                f"source: {source} does not exist. Name the config of the source stage, relative "
                "to where you are."
            )

    def instantiate_classes(self) -> None:
        """Build task, data and trainer; a backbone stays on disk if it will be sharded."""
        strategy = self.options.trainer.get("strategy")
        kind = strategy.get("class_path") if hasattr(strategy, "get") else strategy
        sharded = str(kind).rpartition(".")[2] == "ShardedBackbone"
        with matrices_on_disk() if sharded else nullcontext():
            super().instantiate_classes()

    @property
    def source_stages(self) -> SourceStages:
        """The source stages that this config needs."""
        return SourceStages(self.parser_of(self.command), self.resolved())

    def resolved(self) -> dict[str, Any]:
        """The resolved config in plain types, as it would be written to config.yaml.

        Without the checkpoint of a resume: the config of a run, run again, begins a new one.
        """
        config = plain(self.parser_of(self.command), self.options)
        return {**config, "ckpt_path": None, "resume": False} if self.command == "fit" else config

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with the run folder, its loggers and the record."""
        task, options = self.model, self.initialised("trainer")
        assert isinstance(task, AdapterTask)
        refuse_other_processes(options, os.environ)
        task.checkpoint = self.options.get("ckpt_path")
        config = self.resolved()
        self._provide_sources(task, options, config)
        kwargs["plugins"] = with_checked_io(options.get("plugins"))
        own: list[Callback] = []
        if options.get("enable_progress_bar") is not False:
            own.append(ProgressBar())
        if not options.get("fast_dev_run"):
            folder = self._begin_run(task, config)
            # Where Lightning looks for a checkpoint by itself, under SLURM.
            kwargs["default_root_dir"] = options.get("default_root_dir") or str(folder)
            own += self._callbacks(task, options, folder)
            kwargs["logger"] = self._loggers(task, options, folder)
        try:
            return self.make_trainer({**options, **kwargs}, own)
        except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
            raise ValueError(
                f"trainer: {error} Check trainer.accelerator, devices, strategy, precision and "
                "callbacks, and the variables of SLURM if there are any."
            ) from error

    def _provide_sources(self, task: AdapterTask, options: Any, config: dict[str, Any]) -> None:
        """Find, or train, the runs that this one takes adapters from."""
        stages = SourceStages(self.parser_of(self.command), config)
        stages.locate(task, train=self.command == "fit")
        if self.command != "fit":
            return
        if self.options.source:
            if options.get("fast_dev_run"):
                say("fast_dev_run: the source stage is left out.")
            elif not task.checkpoint:  # a checkpoint holds what came of the source
                stages.carry_over(task, self.options.source)
        frozen = not task.adapter_trainable and task.adapter.carries_over
        if frozen and not (task.adapter_from or self.options.source):
            raise ValueError(
                f"adapter_trainable: false freezes a {task.adapter.label} that has learned nothing "
                "yet. Set source (or model.adapter_from) as well, or use LinearProbe."
            )

    def _begin_run(self, task: AdapterTask, config: dict[str, Any]) -> Path:
        """The folder of the run, and its record."""
        seed, experiment = int(self.options.seed_everything), self.options.experiment
        parent = Path(self.options.runs_dir) / experiment / task.label / f"seed{seed}"
        folder = self._claim(parent, config)
        self.record = RunRecord(
            folder,
            experiment=experiment,
            seed=seed,
            command=self.command,
            config=config,
            allow_degenerate=self.options.allow_degenerate,
            clock=RunClock(),
        )
        return folder

    def _callbacks(self, task: AdapterTask, options: Any, folder: Path) -> list[Callback]:
        """KoRA's own callbacks: they record a run, guard it, and keep its checkpoints."""
        assert self.record is not None
        found: list[Callback] = [self.record.clock, self.record, OutcomeRecord(folder)]
        if self.command != "fit":
            return found
        found += [FiniteGuard(), NodeGradients(folder)]
        if options.get("enable_checkpointing") is not False:
            state = TrainingState(
                folder,
                seed=self.record.seed,
                config=self.record.config,
                typed=self.typed,
                saving=self.initialised("save"),
            )
            validates = getattr(self.datamodule, "validates", True)
            found.append(state)
            found += best_and_last(folder, task.monitor, validates=validates)
        return found

    def _loggers(self, task: AdapterTask, options: Any, folder: Path) -> list[Any]:
        """KoRA's own loggers, and those that the config names."""
        given = options.get("logger")
        more = given if isinstance(given, list) else [given]
        return [
            *make_loggers(
                folder,
                self.initialised("wandb"),
                experiment=self.options.experiment,
                strategy=task.label,
                seed=int(self.options.seed_everything),
                stage=self.command,
                resumed=self._resumed(),
            ),
            *(logger for logger in more if not isinstance(logger, bool | None)),
        ]

    def _resumed(self) -> Path | None:
        ckpt_path = self.options.get("ckpt_path") if self.command == "fit" else None
        return Path(ckpt_path) if ckpt_path else None

    def _claim(self, parent: Path, config: dict[str, Any]) -> Path:
        """The folder of this run: that of the resumed run, or a new one."""
        ckpt_path = self._resumed()
        folder = (ckpt_path and own_folder(ckpt_path, parent)) or claim_run_folder(parent)
        self.run_folder = folder  # to be removed if the command is refused
        if self.command == "fit" and not rank_zero_only.rank:  # type: ignore[attr-defined]
            self.lock = RunLock(folder)
            if ckpt_path:
                take_over(ckpt_path, folder, config=config)
        return folder

    # -- the command ---------------------------------------------------------------------------

    def run_command(self, command: str) -> None:
        """Run it; after Ctrl-C (Lightning closes files and exits), say how to resume."""
        try:
            super().run_command(command)
        except SIGTERMException:
            raise  # where it was raised, a message has said how to resume
        except (SystemExit, KeyboardInterrupt) as end:
            if isinstance(end, SystemExit) and not self.trainer.interrupted:
                raise
            say(after_interruption(self.run_folder))
            sys.exit(128 + signal.SIGINT)
        finally:
            if self.lock is not None:
                self.lock.release()

    # -- after a command -----------------------------------------------------------------------

    def after_fit(self) -> None:
        """Test the best checkpoint once, write the record and print the summary."""
        if self.record is None or self.trainer.interrupted:
            return
        path = getattr(best_of(self.trainer), "best_model_path", "") or None
        if not self.options.leave_out_test:
            self.trainer.test(
                self.model, datamodule=self.datamodule, ckpt_path=path, verbose=False,
                weights_only=True,
            )  # fmt: skip
        elif path is not None:
            self.model.load_state_dict(read_checkpoint(path)["state_dict"])
        self._finish()

    def after_test(self) -> None:
        """Write the record of the test."""
        self._finish()

    def after_validate(self) -> None:
        """Write the record of the validation."""
        self._finish()

    def predict(self, **kwargs: Any) -> None:
        """Predict, and write a file of the predictions into the run folder."""
        batches = self.trainer.predict(**{**kwargs, "return_predictions": True})
        if self.record is not None:
            self.record.write_predictions(self.trainer, in_one_list(batches or []))  # type: ignore[arg-type]

    def _finish(self) -> None:
        if self.record is not None:
            self.record.finish(self.trainer, self.model, self.datamodule)


def parse(args: Sequence[str]) -> KoraCLI:
    """A KoraCLI that has parsed its config, and done nothing else."""

    class ParseOnly(KoraCLI):
        def before_instantiate_classes(self) -> None:
            pass

        def instantiate_classes(self) -> None:
            pass

        def run_command(self, command: str) -> None:
            pass

    with without_noise():
        return ParseOnly(args)


def run_lightning(args: Sequence[str]) -> None:
    """Run `fit`, `validate`, `test` or `predict` with its options."""
    with without_noise():
        KoraCLI(args)
