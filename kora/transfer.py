"""Two-stage jobs: find the adapter of the source stage, or train it first.

A source run fits when its resolved config equals the one that this job would run: same data, same
strategy and backbone, same seed, same training. Where it runs (devices, loggers) does not matter.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kora.checkpoints import ADAPTER_CONFIG, read_adapter_config
from kora.results import RESULTS_NAME, read_results, run_versions
from kora.wandb_run import SWEEP_VARIABLES

__all__ = [
    "find_finished_run",
    "find_source_run",
    "plain",
    "source_overrides",
    "train_source",
]

#: What of the trainer is a matter of the machine and not of the result.
_MACHINE = {
    "accelerator", "devices", "num_nodes", "strategy", "logger", "plugins",
    "default_root_dir", "enable_progress_bar", "enable_model_summary", "enable_checkpointing",
    "log_every_n_steps", "profiler", "benchmark", "enable_autolog_hparams", "model_registry",
}  # fmt: skip


def plain(parser: Any, options: Any) -> dict[str, Any]:
    """A resolved config in plain types."""
    text = parser.dump(options, skip_none=False, skip_validation=True)
    config: dict[str, Any] = yaml.safe_load(text)
    config.pop("config", None)
    return config


def source_overrides(config: Mapping[str, Any], *, keep_adapter: bool = False) -> dict[str, Any]:
    """What the source stage takes from the job: all but its data and schedule.

    With `keep_adapter` not the adapter and its optimiser either.
    """
    trainer = config["trainer"]
    taken = ("accelerator", "devices", "num_nodes", "strategy", "precision", "enable_progress_bar")
    arguments = config["model"]["init_args"]
    keys = ("backbone",) if keep_adapter else ("backbone", "adapter", "optimizer")
    return {
        "seed_everything": config["seed_everything"],
        "runs_dir": config["runs_dir"],
        "wandb": {**config["wandb"], "job_type": "source"},
        "trainer": {key: trainer[key] for key in taken},
        "model": {"init_args": {key: arguments[key] for key in keys}},
    }


def find_source_run(parent: Path, wanted: Mapping[str, Any], sha256: str) -> Path | None:
    """The newest finished run below `parent` whose config equals `wanted`, if there is one."""
    for folder in reversed(run_versions(parent).values()):
        complete = all(
            (folder / name).is_file()
            for name in ("config.yaml", RESULTS_NAME, f"adapter/{ADAPTER_CONFIG}")
        )
        if complete:
            config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
            backbone = read_adapter_config(folder / "adapter")["backbone"]
            if _essence(config) == _essence(wanted) and backbone["sha256"] == sha256:
                return folder
    return None


def find_finished_run(experiment: Path, wanted: Mapping[str, Any]) -> Path | None:
    """The newest finished `fit` in an experiment's folder whose config equals `wanted`.

    Runs that cannot be read count as not finished. Files that a config only names (weights, data,
    the source config) are not compared.
    """
    for parent in sorted(experiment.glob(f"*/seed{wanted['seed_everything']}")):
        for folder in reversed(run_versions(parent).values()):
            try:
                result = read_results(folder)
                config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
            except (OSError, RuntimeError, ValueError, yaml.YAMLError):
                continue
            trained = result.finished and result.stage == "fit" and isinstance(config, dict)
            if trained and _essence(config) == _essence(wanted):
                return folder
    return None


def train_source(source: str, overrides: Mapping[str, Any]) -> None:
    """Run the source config in a process of its own, so that nothing of it stays behind here.

    Raises:
        RuntimeError: If it fails.
    """
    runs = Path(overrides["runs_dir"])
    runs.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(suffix=".yaml", prefix=".source_", dir=runs)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            yaml.safe_dump(dict(overrides), file)
        command = [sys.executable, "-m", "kora", "fit", "--config", source, "--config", name]
        # In a sweep, the source stage is not the run that the agent has started.
        env = {key: value for key, value in os.environ.items() if key not in SWEEP_VARIABLES}
        done = subprocess.run(command, stdin=subprocess.DEVNULL, env=env, check=False)
    finally:
        Path(name).unlink(missing_ok=True)
    if done.returncode:
        raise RuntimeError(
            f"The source stage failed (exit code {done.returncode}); its message stands above. To "
            f"run it by itself: kora fit --config {source}"
        )


def _essence(config: Mapping[str, Any]) -> dict[str, Any]:
    trainer = {k: v for k, v in config["trainer"].items() if k not in _MACHINE}
    keys = ("seed_everything", "model", "data", "experiment", "source")
    return {"trainer": trainer, **{key: config.get(key) for key in keys}}
