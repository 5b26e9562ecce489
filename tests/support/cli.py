"""Run the real command line in this process, on tiny data."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from kora.cli import main
from kora.runs.processes import Stop, run_child
from tests.support.forks import (
    Process,
    fork,
    fork_the_ranks,
    forked,
    keep_a_process,
    share_the_kept,
)

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


def kora(capfd: pytest.CaptureFixture[str], *args: str | Path) -> Outcome:
    """Run `kora ARGS` here; never raises."""
    code = 0
    try:
        main([str(arg) for arg in args])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capfd.readouterr()
    return Outcome(code, captured.out, captured.err)


@contextmanager
def started(
    *args: str | Path,
    log: Path,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    first: Callable[[], object] = lambda: None,
) -> Iterator[Process]:
    """`kora ARGS` in a process of its own, as from a terminal; it is gone at the end.

    A fork of this one, in a session of its own, and so are the ranks that it starts: to import
    torch anew takes five seconds. What is to be done `first` is done in it.
    """
    program, words = _kora(args, first)
    with forked(program, log, words=words, folder=folder, environment=environment) as process:
        yield process


def start(
    args: Sequence[str | Path],
    streams: Sequence[int],
    folder: Path,
    environment: Mapping[str, str] | None,
) -> Process:
    """The same on these streams; whoever asks for it ends it."""
    return fork(*_kora(args), streams, folder, environment)


def _kora(
    args: Sequence[str | Path], first: Callable[[], object] = lambda: None
) -> tuple[Callable[[], None], list[str]]:
    """What is done in the fork, and its words; what it needs is imported here."""
    import kora.training.lightning_cli  # noqa: F401

    keep_a_process()
    words = ["kora", *map(str, args)]

    def program() -> None:
        share_the_kept()
        fork_the_ranks()
        first()
        main(words[1:])

    return program, words


def ended(
    folder: Path, args: Sequence[str | Path], environment: Mapping[str, str], log: Path
) -> tuple[int, str]:
    """Exit code (negative: a signal) and output of `kora ARGS`, as a run of a grid is started."""
    with chdir(folder):
        code = _end(args, environment, log)
    return code, log.read_text()


def all_ended(
    runs: Sequence[tuple[Sequence[str | Path], Mapping[str, str], Path]],
) -> list[tuple[int, float]]:
    """The exit code of each `kora ARGS`, and when it ended; each is args, environment and log.

    Six at once, in the working directory of this process.
    """
    with ThreadPoolExecutor(6) as pool:
        return list(pool.map(lambda run: (_end(*run), time.time()), runs))


def _end(args: Sequence[str | Path], environment: Mapping[str, str], log: Path) -> int:
    with log.open("wb") as output:
        return run_child(
            [str(arg) for arg in args], stop=Stop(), env=environment, output=output,
            more_follow=True,
        )  # fmt: skip


def fit_in(folder: Path, *args: str | Path) -> Path:
    """The folder, in which `kora fit ARGS` has run; what that printed is in its out.txt."""
    with (folder / "out.txt").open("a") as out, redirect_stdout(out), chdir(folder):
        main(["fit", *map(str, args)])
    return folder


def wait_for(path: Path, process: Process, *, patience_s: float = 240) -> None:
    """Until a file is there, the process has ended, or patience has."""
    end = time.monotonic() + patience_s
    while not path.exists() and time.monotonic() < end and process.poll() is None:
        time.sleep(0.1)


def tiny_config(**changes: Any) -> dict[str, Any]:
    """Two steps of LoRA on vit_nano with random weights, on 32-pixel scenes, without pictures.

    `changes` are top-level.
    """
    config = {
        "experiment": "tiny",
        "pictures": False,
        "model": {
            "class_path": "kora.tasks.ClassificationTask",
            "init_args": {
                "backbone": {"name": "vit_nano", "weights": "random", "image_size": 32},
                "adapter": {"class_path": "kora.adapters.LoRA", "init_args": {"rank": 2}},
            },
        },
        "data": {
            "class_path": "datamodules.Synthetic",
            "init_args": {
                "image_size": 32,
                "train_images": 48,
                "test_images": 24,
                "val_images": 12,
                "batch_size": 18,
            },
        },
        "trainer": {"max_epochs": 1, "enable_progress_bar": False, "accelerator": "cpu"},
    }
    return {**config, **changes}


def write_config(path: Path, config: dict[str, Any]) -> Path:
    """Write a config file."""
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def results(run: Path) -> dict[str, Any]:
    """The record of a run."""
    record: dict[str, Any] = json.loads((run / "results.json").read_text(encoding="utf-8"))
    return record


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with tiny.yaml in it."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "tiny.yaml", tiny_config())
    return tmp_path


SCENES: dict[str, Any] = {
    "class_path": "datamodules.Synthetic",
    "init_args": {
        "image_size": 32,
        "maps": ["depth_m"],
        "train_images": 48,
        "test_images": 24,
        "val_images": 12,
        "batch_size": 18,
        "augment": "flip_crop_color",
    },
}


def depth_config(*, data: Any = SCENES, protocol: Any = "full", **changes: Any) -> dict[str, Any]:
    config = tiny_config(experiment="tiny_depth", data=data, **changes)
    model = config["model"]
    model["class_path"] = "kora.tasks.DepthTask"
    model["init_args"] |= {
        "head": {"class_path": "kora.heads.LinearDepth", "init_args": {"bins": 16}},
        "protocol": protocol,
    }
    return config
