"""Grid files, and the processes that work on them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml


def write_grid(folder: Path, **content: Any) -> str:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({"base": "tiny.yaml", **content}, sort_keys=False))
    return path.name


def lines(out: str, start: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith(start)]


#: Long enough to be stopped in; saved at every step.
LONG = {
    "trainer.max_steps": 30, "trainer.max_epochs": -1, "save.every_steps": 1,
    "trainer.callbacks": [{"class_path": "tests.support.slowly.Slowly"}],
}  # fmt: skip


def runs_of_kora(folder: Path) -> list[int]:
    """Processes of `kora` that work in a folder, by what the system says.

    That of a checkout may be called kora too, and stands in the command of all that Python starts.
    """
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")[:4]  # python -m kora, or bin/kora
            named = (entry / "comm").read_text().startswith("kora ")  # a fork
            if (entry / "cwd").resolve() == folder and (
                named or b"kora" in map(os.path.basename, words)
            ):
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def parent_of(pid: int) -> int:
    """The process that began one, by what the system says."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.fixture
def gone(here: Path) -> Iterator[None]:
    """At the end no process of the test is left."""
    yield
    left = runs_of_kora(here)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
