"""Find the runs of a config: finished, unfinished, or at work now.

Two configs describe the same run if everything that affects the result is equal: data, model,
training, seed, experiment and source stage. Devices, loggers and folders do not matter. The content
of files that a config only names (weights, data, the source config) is not compared. A run of an
earlier version is found by its config.yaml, with newer options at their defaults.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kora.runs.config import MOVED, with_defaults
from kora.runs.lock import RunLock
from kora.runs.results import RESULTS_NAME, read_results, run_versions
from kora.runs.yaml_files import read_yaml

__all__ = [
    "LAST_CHECKPOINT",
    "are_of_one_config",
    "config_hash",
    "find_at_work",
    "find_finished_run",
    "last_checkpoint",
    "run_folders",
    "without_cache",
]

LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"

_KEYS = ("seed_everything", "model", "data", "experiment", "source")

#: Options of the trainer that depend on the machine and do not affect the result.
_MACHINE = {
    "accelerator", "devices", "num_nodes", "strategy", "logger", "plugins",
    "default_root_dir", "enable_progress_bar", "enable_model_summary", "enable_checkpointing",
    "log_every_n_steps", "profiler", "benchmark", "enable_autolog_hparams", "model_registry",
}  # fmt: skip


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of the parts of a resolved config that affect its result.

    Empty options (null, or an empty list or table) do not count, so a later version with more
    options finds the runs of an earlier one.
    """
    trainer = {k: v for k, v in config["trainer"].items() if k not in _MACHINE}
    essence = {"trainer": trainer, **{key: config.get(key) for key in _KEYS}}
    essence["model"] = without_cache(config.get("model") or {})
    if config.get("leave_out_test"):  # must not replace a run that was tested
        essence["leave_out_test"] = True
    return hashlib.sha256(json.dumps(_filled(essence), sort_keys=True).encode()).hexdigest()


def without_cache(model: Mapping[str, Any]) -> dict[str, Any]:
    """The model of a config without options of the feature cache that do not affect results."""
    arguments = dict(model.get("init_args") or {})
    for key in ("feature_cache", "feature_cache_folder"):
        arguments.pop(key, None)
    if arguments.get("feature_cache_dtype") == "float32":  # the others round
        del arguments["feature_cache_dtype"]
    return {**model, "init_args": arguments}


#: A class counts by its first path, so that hashes of earlier versions stay valid.
_FIRST_NAMES = {now: before for before, now in MOVED.items()}


def _filled(value: Any) -> Any:
    if isinstance(value, Mapping):
        inner = {key: _filled(item) for key, item in value.items()}
        if isinstance(value.get("class_path"), str):
            inner["class_path"] = _FIRST_NAMES.get(value["class_path"], value["class_path"])
        return {key: item for key, item in inner.items() if item not in (None, [], {})}
    return [_filled(item) for item in value] if isinstance(value, list | tuple) else value


def run_folders(config: Mapping[str, Any]) -> Iterator[Path]:
    """Run folders of the experiment and seed of a config; for each strategy, the newest first."""
    experiment = Path(config["runs_dir"]) / config["experiment"]
    for parent in sorted(experiment.glob(f"*/seed{config['seed_everything']}")):
        yield from reversed(run_versions(parent).values())


def find_finished_run(
    config: Mapping[str, Any], accept: Callable[[Path], bool] = lambda folder: True
) -> Path | None:
    """The newest finished `fit` of a config that `accept` accepts.

    Results that cannot be read count as not finished.
    """
    wanted = config_hash(config)
    for folder in run_folders(config):
        try:
            result = read_results(folder)
        except (OSError, RuntimeError, ValueError):
            continue
        trained = result.finished and result.stage == "fit"
        if trained and _is_of(folder, result.config_sha256, wanted) and accept(folder):
            return folder
    return None


def last_checkpoint(config: Mapping[str, Any]) -> Path | None:
    """The newest last checkpoint among unfinished runs of a config that no process trains."""
    found = [
        folder / LAST_CHECKPOINT
        for folder in _unfinished(config)
        if (folder / LAST_CHECKPOINT).is_file() and not RunLock.is_held(folder)
    ]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def find_at_work(config: Mapping[str, Any]) -> Path | None:
    """The unfinished run of a config that a process trains now."""
    return next((folder for folder in _unfinished(config) if RunLock.is_held(folder)), None)


def _unfinished(config: Mapping[str, Any]) -> Iterator[Path]:
    wanted = config_hash(config)
    for folder in run_folders(config):
        if not (folder / RESULTS_NAME).exists() and _is_of(folder, None, wanted):
            yield folder


def are_of_one_config(runs: Iterable[tuple[Path, str | None]]) -> bool:
    """Whether runs differ only in seed and experiment, with newer options at their defaults.

    Each run is given by its folder and its recorded hash.
    """
    found = set()
    for folder, recorded in runs:
        config = _config_of(folder, recorded)
        if config is None:
            return False
        found.add(config_hash(with_defaults({**config, "seed_everything": 0, "experiment": ""})))
    return len(found) == 1


def _is_of(folder: Path, recorded: str | None, wanted: str) -> bool:
    """Whether a run has the wanted hash, by its record or else by its config.yaml."""
    if recorded == wanted:
        return True
    config = _config_of(folder, recorded)
    return config is not None and wanted in map(config_hash, (config, with_defaults(config)))


def _config_of(folder: Path, recorded: str | None) -> dict[str, Any] | None:
    """The config.yaml of a run; None if it cannot be read, or does not match the recorded hash."""
    try:
        config = read_yaml(folder / "config.yaml")
        found = config_hash(config)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return dict(config) if recorded in (None, found) else None
