"""What a source stage takes from the job that needs it, and how it is trained."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kora.console.say import say
from kora.loggers.wandb_run import SWEEP_VARIABLES
from kora.runs.processes import Stop, run_child

__all__ = ["plain", "require_end", "source_overrides", "train_source"]

#: The source configs above this process, each of which the one before it needs.
_ABOVE = "KORA_SOURCES_ABOVE"


def plain(parser: Any, options: Any) -> dict[str, Any]:
    """A resolved config in plain types."""
    text = parser.dump(options, skip_unset=False, skip_validation=True)
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
        ValueError: It does.
    """
    if str(Path(source).resolve()) in _above():
        raise ValueError(
            f"source: {source} needs itself, by way of its own source. Name the config of a stage "
            "that can be trained before this one."
        )


def _above() -> list[str]:
    return os.environ.get(_ABOVE, "").splitlines()


def train_source(
    source: str, overrides: Mapping[str, Any], *, checkpoint: Path | None = None
) -> None:
    """Run the source config in a process of its own, so that nothing of it stays behind here.

    When this process is told to stop, the source run stops with a checkpoint, and then this one.

    Args:
        source: Path of the config.
        overrides: What wins over it.
        checkpoint: Where to go on from; None begins a new run.

    Raises:
        RuntimeError: If it fails.
    """
    runs = Path(overrides["runs_dir"])
    runs.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(suffix=".yaml", prefix=".source_", dir=runs)
    goes_on = [] if checkpoint is None else ["--ckpt_path", str(checkpoint)]
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            yaml.safe_dump(dict(overrides), file)
        # In a sweep, the source stage is not the run that the agent has started.
        env = {key: value for key, value in os.environ.items() if key not in SWEEP_VARIABLES}
        env[_ABOVE] = "\n".join([*_above(), str(Path(source).resolve())])
        args = ["fit", "--config", source, "--config", name, *goes_on]
        with Stop.on_signals() as stop:
            code = run_child(args, stop=stop, env=env)
    finally:
        Path(name).unlink(missing_ok=True)
    if stop.signal is not None:
        say("stopped within the source stage; the same command goes on with it.")
        sys.exit(stop.exit_code)
    if code:
        raise RuntimeError(
            f"The source stage failed (exit code {code}); its message stands above. To run it by "
            f"itself: kora fit --config {source}"
        )
