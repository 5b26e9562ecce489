"""Which run a command resumes, and in which folder.

An unfinished run resumes in its own folder: it is the same run, and `kora compare` and a reader
find one. Any other start (a finished run, `best.ckpt`, a run under another name) stays as it is,
and a new folder gets a copy of the best checkpoint so far. A command without `--resume` or
`--ckpt_path` always begins a new run.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from kora.adapters.checkpoint_files import read_checkpoint
from kora.console.say import say
from kora.loggers.csv_log import count_rows, keep_rows
from kora.runs.config import plain_name
from kora.runs.lock import RunLock
from kora.runs.results import RESULTS_NAME
from kora.runs.search import LAST_CHECKPOINT, run_folders
from kora.runs.trust import modules_to_trust
from kora.runs.yaml_files import read_yaml
from kora.training.resume_changes import changes, was_typed

__all__ = [
    "after_interruption",
    "checkpoint_to_resume",
    "find_unfinished",
    "how_to_go_on",
    "keep_config",
    "own_folder",
    "resume_arguments",
    "take_over",
    "typed_options",
]

#: Environment variable that tells the other processes of a run what the first one has found.
_FOUND = "KORA_RESUMES"


def how_to_go_on(folder: Path) -> str:
    """The command that resumes a run."""
    config, last = str(folder / "config.yaml"), str(folder / LAST_CHECKPOINT)
    named = modules_to_trust(read_yaml(config))
    trust = [part for module in named for part in ("--trust", module)]
    return shlex.join(["kora", "fit", "--config", config, "--ckpt_path", last, *trust])


def after_interruption(folder: Path | None) -> str:
    """The message after Ctrl-C."""
    if folder is None:
        return "interrupted."
    if not (folder / LAST_CHECKPOINT).is_file():
        return f"interrupted before the first step was finished. What was written is in {folder}"
    return f"interrupted. The last checkpoint is in {folder}; to resume:\n{how_to_go_on(folder)}"


def typed_options(args: Sequence[str]) -> set[str]:
    """Dotted names of the options on a command line, without files and `init_args`."""
    names = {plain_name(arg[2:].partition("=")[0]) for arg in args if arg.startswith("--")}
    return names - {"config", "ckpt_path", "resume"}


def resume_arguments(args: Sequence[str]) -> list[str]:
    """The arguments of `fit` with `--resume` and `--ckpt_path last` spelled out.

    `--resume RUN` becomes the last checkpoint of this run, and its config if none is given. A bare
    `--resume` becomes `--resume true`; the parsed config decides which run that is.

    Raises:
        ValueError: If no `--config` is in the folder of a run that can be resumed.
        FileNotFoundError: If the run has no last checkpoint.
    """
    out: list[str] = []
    configs: list[str] = []
    words = [part for arg in args for part in _split(arg)]
    run: str | None = None
    place = 0
    while place < len(words):
        word = words[place]
        value = words[place + 1] if place + 1 < len(words) else None
        has_value = value is not None and not value.startswith("--")
        if word == "--resume":
            if not has_value or value in ("true", "True"):
                out.append("--resume=true")
            elif value in ("auto", "false", "False"):
                out.append(f"--resume={value}")
            else:
                run = value
            place += 1 + has_value
            continue
        if word == "--ckpt_path" and value == "last":
            out += ["--ckpt_path", str(_last_of(configs))]
            place += 2
            continue
        if word == "--config" and value is not None:
            configs.append(value)
        out.append(word)
        place += 1
    if run is None:
        return out
    last = Path(run) / LAST_CHECKPOINT
    if not last.is_file():
        raise FileNotFoundError(
            f"--resume {run}: there is no {last}. Name the folder of a run "
            "(runs/<experiment>/<strategy>/seed<k>/version_<n>) that has saved a checkpoint."
        )
    own = [] if configs else ["--config", str(Path(run) / "config.yaml")]
    return [*out[:1], *own, *out[1:], "--ckpt_path", str(last)]


def _split(arg: str) -> list[str]:
    for name in ("--resume", "--ckpt_path", "--config"):
        if arg.startswith(f"{name}="):
            return [name, arg.partition("=")[2]]
    if arg == "-c" or arg.startswith("-c="):
        return ["--config", *([arg[3:]] if len(arg) > 2 else [])]
    return [arg]


def _last_of(configs: Sequence[str]) -> Path:
    for config in reversed(configs):
        last = Path(config).parent / LAST_CHECKPOINT
        if last.is_file():
            return last
    named = ", ".join(configs) or "none"
    raise ValueError(
        f"--ckpt_path last: no --config before it ({named}) has checkpoints/last.ckpt in its "
        "folder. Give the config.yaml in the folder of the run, or the path of a checkpoint."
    )


def checkpoint_to_resume(options: Any, config: Mapping[str, Any], typed: set[str]) -> str | None:
    """The checkpoint that `--resume true` or `auto` resumes from; None begins a new run.

    Raises:
        ValueError: Both are given, or `true` and there is none.
    """
    wanted = options.resume
    if options.get("ckpt_path"):
        raise ValueError("--resume and --ckpt_path both name what to resume. Leave one out.")
    if wanted not in (True, "auto"):
        raise ValueError(f"resume={wanted!r}: in a config it is false, true or auto.")
    given = os.environ.get(_FOUND)
    if given is not None and rank_zero_only.rank:  # type: ignore[attr-defined]
        return given or None
    found = find_unfinished(config, typed, required=wanted is True)
    os.environ[_FOUND] = str(found or "")  # for the processes that this one starts
    return None if found is None else str(found)


def find_unfinished(config: Mapping[str, Any], typed: set[str], *, required: bool) -> Path | None:
    """The last checkpoint of the newest unfinished run of this config; typed options may differ.

    Typed classes, such as another strategy, may not. Runs at which another program is at work are
    left out: on the first process, as it is at work for the others of its own run.

    Raises:
        ValueError: If there is none, and one is required.
    """
    experiment = Path(config["runs_dir"]) / config["experiment"]
    fitting: list[Path] = []
    other: list[str] = []
    for folder in run_folders(config):
        if (folder / RESULTS_NAME).exists() or not (folder / LAST_CHECKPOINT).is_file():
            continue
        try:
            theirs = _config_of(folder)
        except ValueError as error:
            other.append(str(error).removesuffix("."))
            continue
        different = [
            key
            for key in changes(theirs, config)
            if key.endswith(".class_path") or not was_typed(key, typed)
        ]
        if different:
            other.append(f"{folder} (other {', '.join(different[:3])})")
        elif not rank_zero_only.rank and RunLock.is_held(folder):  # type: ignore[attr-defined]
            other.append(f"{folder} (a process is at work on it)")
        else:
            fitting.append(folder)
    if fitting:
        return max(
            (folder / LAST_CHECKPOINT for folder in fitting), key=lambda p: p.stat().st_mtime_ns
        )
    if not required:
        say("nothing to resume; this is a new run.")
        return None
    seen = f" There are {'; '.join(other)}." if other else ""
    raise ValueError(
        f"--resume: no unfinished run of this config with a checkpoint is below {experiment}."
        f"{seen} Leave --resume out to begin a new run, or name the folder of the run."
    )


def own_folder(ckpt_path: str | Path, parent: Path) -> Path | None:
    """The folder of the unfinished run whose last checkpoint this is, if it is in `parent`."""
    path = Path(ckpt_path)
    folder = path.parent.parent
    mine = path.name == LAST_CHECKPOINT.name and path.parent.name == "checkpoints"
    if not mine or folder.absolute().parent != parent.absolute():
        return None
    unfinished = (folder / "config.yaml").is_file() and not (folder / RESULTS_NAME).exists()
    return folder if unfinished else None


def take_over(ckpt_path: str | Path, folder: Path, *, config: Mapping[str, Any]) -> None:
    """Prepare a folder for a run that resumes from a checkpoint.

    In the run's own folder, rows that were logged after the checkpoint are removed, as they are
    logged again. Another folder gets the best checkpoint so far, and the log up to the checkpoint.

    Raises:
        ValueError: If the run has another seed.
        RuntimeError: If its log is damaged.
    """
    old = Path(ckpt_path).parent.parent
    resumed = read_checkpoint(ckpt_path).get("resume")
    then, now = (resumed or {}).get("settings", {}).get("seed"), config["seed_everything"]
    if then not in (None, now):
        raise ValueError(
            f"A resume cannot change seed_everything: {then} in the checkpoint, {now} here. Leave "
            "it as it was, or begin a new run without --ckpt_path."
        )
    count_rows(old / "metrics.csv")  # check that it can be read, before it is copied
    if old.absolute() != folder.absolute():
        for path in [*old.glob("checkpoints/best.ckpt*"), old / "metrics.csv"]:
            if path.is_file():
                target = folder / path.relative_to(old)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target)
    if resumed is not None:
        keep_rows(folder / "metrics.csv", resumed["rows"])


def _config_of(folder: Path) -> Mapping[str, Any]:
    path = folder / "config.yaml"
    config = read_yaml(path)
    if not isinstance(config, Mapping):
        raise ValueError(f"{path}: holds no settings by name. Begin a new run without it.")
    return config


def keep_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Keep the config of a run under another name, if the run goes on with a changed one."""
    path = folder / "config.yaml"
    if not changes(_config_of(folder), config):
        return
    number = 0
    while os.path.lexists(kept := folder / f"config.before_resume_{number}.yaml"):
        number += 1  # a link to nowhere is there, too
    shutil.copy2(path, kept)
