"""Run the real command line in this process, on tiny data."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from kora.cli import main

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
def started(*args: str | Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`kora ARGS` in a process of its own, as from a terminal; it is gone at the end."""
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "kora", *map(str, args)], stdout=out, stderr=out,
            start_new_session=True,
            # A shell's background ignores Ctrl-C, and hands that on.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_for(path: Path, process: subprocess.Popen[bytes], *, patience_s: float = 240) -> None:
    """Until a file is there, the process has ended, or patience has."""
    end = time.monotonic() + patience_s
    while not path.exists() and time.monotonic() < end and process.poll() is None:
        time.sleep(0.1)


def tiny_config(**changes: Any) -> dict[str, Any]:
    """Two steps of LoRA on vit_nano with random weights, on 32-pixel scenes; top-level changes."""
    config = {
        "experiment": "tiny",
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
