"""Source stages of a job: runs of other configs whose adapters the job starts from or combines."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kora.adapters.checkpoint_files import read_checkpoint, require_record
from kora.console.say import say
from kora.loggers.wandb_run import SWEEP_VARIABLES
from kora.runs.adapter_config import ADAPTER_CONFIG, read_adapter_config
from kora.runs.config_files import find_config
from kora.runs.durable import sweep, temporary_in
from kora.runs.processes import Stop, run_child
from kora.runs.search import find_finished_run, last_checkpoint
from kora.runs.yaml_files import LOADER, read_yaml
from kora.tasks import AdapterTask
from kora.training.config_lock import alone_with
from kora.training.nodes import started_beside_others
from kora.training.parser import fill_image_size
from kora.training.run_options import require_below

__all__ = [
    "SourceStage",
    "SourceStages",
    "keep_normalisation",
    "plain",
    "require_end",
    "source_overrides",
    "train_source",
]


class SourceStage:
    """The run of a source config, with the settings that the job passes on to it.

    Args:
        source: Path of the source config.
        parser: The parser of `kora fit`.
        config: The resolved config of the job.
        keep_adapter: Take adapter and optimiser from the source config; otherwise from the job.

    Raises:
        FileNotFoundError: If there is no such file.
    """

    def __init__(
        self, source: str, parser: Any, config: Mapping[str, Any], *, keep_adapter: bool = False
    ) -> None:
        source = find_config(source)
        if not Path(source).is_file():
            raise FileNotFoundError(
                f"Source config {source} does not exist. Name the config of a source stage, "
                "relative to where you are."
            )
        self.source = source
        self.overrides = source_overrides(config, keep_adapter=keep_adapter)
        keep_normalisation(self.overrides["model"]["init_args"], source)
        layers = ["--config", source, "--config", yaml.safe_dump(self.overrides)]
        parsed = parser.parse_source(source, layers)
        fill_image_size(parsed)
        self.wanted = plain(parser, parsed)
        require_below(self.wanted["experiment"], self.wanted["runs_dir"])

    @property
    def adapter(self) -> dict[str, Any]:
        """Class path and arguments of the adapter that it trains."""
        adapter: dict[str, Any] = self.wanted["model"]["init_args"]["adapter"]
        return adapter

    @property
    def strategy(self) -> str:
        """Class name of the adapter that it trains."""
        return str(self.adapter["class_path"]).rpartition(".")[2]

    def find(self, sha256: str) -> Path | None:
        """The newest finished run of this stage on the backbone with this hash."""

        def accept(folder: Path) -> bool:
            adapter = folder / "adapter"
            there = (adapter / ADAPTER_CONFIG).is_file()
            return there and read_adapter_config(adapter)["backbone"]["sha256"] == sha256

        return find_finished_run(self.wanted, accept)

    def provide(self, sha256: str) -> Path:
        """The folder of a finished run; one process at a time trains or resumes it if missing.

        Raises:
            ValueError: If the stage needs itself, or several processes were started that would wait
                for each other.
            RuntimeError: If the run fails.
        """
        found = self.find(sha256)
        if found is None:
            require_end(self.source)
            if started_beside_others():
                raise ValueError(
                    f"The source stage {self.source} is not trained yet, and of the processes that "
                    "srun or torchrun has started each would wait for the others. Train it first: "
                    f"kora fit --config {self.source}"
                )
            with alone_with(self.wanted, say=lambda why: say(f"Source stage {self.source}: {why}")):
                found = self.find(sha256)
                if found is None:
                    return self._train(sha256)
        say(f"Source stage: {found} fits and is used again.")
        return found

    def _train(self, sha256: str) -> Path:
        checkpoint = last_checkpoint(self.wanted)
        if checkpoint is not None and not _is_for_backbone(checkpoint, sha256):
            checkpoint = None
        how = "trained first" if checkpoint is None else f"resumed from {checkpoint}"
        say(f"Source stage: {self.source} with {self.strategy}, {how}.")
        train_source(self.source, self.overrides, checkpoint=checkpoint)
        found = self.find(sha256)
        assert found is not None, "the source stage ended without a run that fits its config"
        return found


class SourceStages:
    """The earlier runs that the adapter of a job needs."""

    def __init__(self, parser: Any, config: Mapping[str, Any]) -> None:
        self.parser = parser
        self.config = config

    def carry_over(self, task: AdapterTask, source: str) -> None:
        """Set `adapter_from`; train the source stage first if it is missing."""
        if not task.adapter.carries_over:
            say(f"{task.adapter.label} has no adapter to carry over: no source stage.")
            return
        stage = SourceStage(source, self.parser, self.config)
        task.adapter_from = str(stage.provide(task.backbone.sha256) / "adapter")

    def locate(self, task: AdapterTask, *, train: bool) -> None:
        """Give an adapter that combines earlier runs their folders, found by their configs.

        Args:
            task: Its adapter is not attached yet.
            train: Train missing runs. Otherwise they stay unknown: a checkpoint may hold them.
        """
        runs, sha256 = task.adapter.earlier_runs, task.backbone.sha256
        if runs is None:
            return
        folders = {}
        for source in runs.configs():
            if not (train or Path(source).is_file()):
                continue
            stage = self._kept(source)
            found = stage.provide(sha256) if train else stage.find(sha256)
            if found is not None:
                folders[source] = str(found / "adapter")
        runs.locate(folders)

    def assume_sources(self, task: AdapterTask) -> None:
        """Describe those runs by their configs, to count parameters; they need not exist."""
        runs = task.adapter.earlier_runs
        if runs is not None and runs.configs():
            stages = [self._kept(source) for source in runs.configs()]
            backbone = {"name": task.backbone.name, "sha256": ""}
            records = [{"adapter": stage.adapter, "backbone": backbone} for stage in stages]
            runs.recall({"sources": records}, {}, "the config")

    def _kept(self, source: str) -> SourceStage:
        return SourceStage(source, self.parser, self.config, keep_adapter=True)


def _is_for_backbone(checkpoint: Path, sha256: str) -> bool:
    """Whether a checkpoint can be read and belongs to the backbone with this hash."""
    try:
        record = require_record(read_checkpoint(checkpoint), str(checkpoint))
    except (OSError, RuntimeError, ValueError):
        return False
    return bool(record["sha256"] == sha256)


#: Environment variable: the source configs that this process and its parents train.
_SOURCES = "KORA_SOURCES_ABOVE"


def plain(parser: Any, options: Any) -> dict[str, Any]:
    """A resolved config in plain types."""
    text = parser.dump(options, skip_unset=False, skip_validation=True)
    config: dict[str, Any] = yaml.load(text, LOADER)
    config.pop("config", None)
    return config


def source_overrides(config: Mapping[str, Any], *, keep_adapter: bool = False) -> dict[str, Any]:
    """The settings that a source stage takes from the job: all but data and schedule.

    With `keep_adapter`, not the adapter and its optimiser either.
    """
    trainer = config["trainer"]
    taken = ("accelerator", "devices", "num_nodes", "strategy", "precision", "enable_progress_bar")
    arguments = config["model"]["init_args"]
    keys = ("backbone",) if keep_adapter else ("backbone", "adapter", "optimizer")
    return {
        **({"leave_out_test": True} if config.get("leave_out_test") else {}),
        "seed_everything": config["seed_everything"],
        "runs_dir": config["runs_dir"],
        "wandb": {**config["wandb"], "job_type": "source"},
        "trainer": {key: trainer[key] for key in taken},
        "model": {"init_args": {key: arguments[key] for key in keys}},
    }


def require_end(source: str) -> None:
    """Refuse a source stage that needs itself: this process would wait for its own parent.

    Raises:
        ValueError: The stage needs itself.
    """
    if str(Path(source).resolve()) in _sources_in_training():
        raise ValueError(
            f"source: {source} needs itself, by way of its own source. Name the config of a stage "
            "that can be trained before this one."
        )


def _sources_in_training() -> list[str]:
    return os.environ.get(_SOURCES, "").splitlines()


def train_source(
    source: str, overrides: Mapping[str, Any], *, checkpoint: Path | None = None
) -> None:
    """Run the source config in a separate process, so that it leaves no state in this one.

    If this process is told to stop, the source run saves a checkpoint and stops first.

    Args:
        source: Path of the config.
        overrides: Settings that override it.
        checkpoint: Where to resume; None begins a new run.

    Raises:
        RuntimeError: If it fails.
    """
    runs = Path(overrides["runs_dir"])
    runs.mkdir(parents=True, exist_ok=True)
    sweep(runs)
    settings = temporary_in(runs)
    resume = [] if checkpoint is None else ["--ckpt_path", str(checkpoint)]
    try:
        settings.write_text(yaml.safe_dump(dict(overrides)), encoding="utf-8")
        # In a sweep, the source stage is not the run that the agent has started.
        env = {key: value for key, value in os.environ.items() if key not in SWEEP_VARIABLES}
        env[_SOURCES] = "\n".join([*_sources_in_training(), str(Path(source).resolve())])
        args = ["fit", "--config", source, "--config", str(settings), *resume]
        with Stop.on_signals() as stop:
            code = run_child(args, stop=stop, env=env)
    finally:
        settings.unlink(missing_ok=True)
    if stop.signal is not None:
        say("stopped during the source stage; the same command resumes it.")
        sys.exit(stop.exit_code)
    if code:
        raise RuntimeError(
            f"The source stage failed (exit code {code}); see its message above. To run it alone: "
            f"kora fit --config {source}"
        )


_KEYS = ("mean", "std")


def keep_normalisation(overrides: dict[str, Any], source: str) -> None:
    """Drop mean and std from a job's overrides if the source config sets its own.

    The published notebook normalises its two data sets differently.

    Args:
        overrides: Resolved `init_args` of the model, with `backbone`; changed in place.
        source: Path of the source config.
    """
    named: Any = read_yaml(source)
    for key in ("model", "init_args", "backbone"):
        named = named.get(key) if isinstance(named, Mapping) else None
    if not isinstance(named, Mapping):
        return
    named = named.get("init_args", named)
    backbone = overrides["backbone"]
    taken = {k: v for k, v in backbone["init_args"].items() if k not in _KEYS or k not in named}
    overrides["backbone"] = {**backbone, "init_args": taken}
