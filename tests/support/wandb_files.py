"""The records of an offline W&B run, read back from its file."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib import get_cachedir
from wandb.proto import wandb_internal_pb2

from tests.support.cli import ended, start, tiny_config, write_config

__all__ = [
    "KEY",
    "completed",
    "config_of",
    "fit_command",
    "history_of",
    "in_a_terminal",
    "offline_folder",
    "records",
    "summary_of",
    "without_login",
]

_BLOCK = 32 * 1024


def offline_folder(run: Path) -> Path:
    """The folder of the only offline W&B run in a run's folder."""
    (found,) = (run / "wandb").glob("offline-run-*")
    return found


def records(folder: Path) -> Iterator[Any]:
    """Every record of an offline run: LevelDB's log format with protobuf messages in it."""
    (path,) = folder.glob("*.wandb")
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    at, payload = 7, b""
    while at < len(data):
        room = _BLOCK - at % _BLOCK
        if room < 7:  # a header never crosses the end of a block
            at += room
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        payload += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield wandb_internal_pb2.Record.FromString(payload)
            payload = b""


def _values(items: Any) -> dict[str, Any]:
    return {
        item.key or "/".join(item.nested_key): yaml.safe_load(item.value_json) for item in items
    }


def config_of(folder: Path) -> dict[str, Any]:
    """The config as it was at the end."""
    found: dict[str, Any] = {}
    for record in records(folder):
        found |= _values(record.run.config.update) | _values(record.config.update)
    return found


def summary_of(folder: Path) -> dict[str, Any]:
    """What was put into the summary."""
    found: dict[str, Any] = {}
    for record in records(folder):
        found |= _values(record.summary.update)
    return found


def history_of(folder: Path) -> list[dict[str, Any]]:
    """The rows that were logged."""
    return [
        _values(r.history.item) for r in records(folder) if r.WhichOneof("record_type") == "history"
    ]


KEY = "0" * 40  # has the form of a W&B key


def without_login(folder: Path, **more: str) -> dict[str, str]:
    """An environment without any W&B setting or login; `folder` is its home."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_") and k != "NETRC"}
    fonts = get_cachedir()  # in a new home matplotlib would look for all fonts again
    return {**clean, "HOME": str(folder), "MPLCONFIGDIR": fonts, "COLUMNS": "200", **more}


def fit_command(folder: Path, *args: str) -> tuple[list[str], dict[str, str]]:
    """Words of `kora fit` on tiny data, and an environment without any W&B setting or login."""
    write_config(folder / "tiny.yaml", tiny_config())
    return ["fit", "--config", "tiny.yaml", *args], without_login(folder)


def completed(
    command: list[str], folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """`kora COMMAND` at its end, as a fork of a process that has imported torch."""
    code, said = ended(folder, command, environment, folder.with_name(f"{folder.name}.log"))
    return subprocess.CompletedProcess(command, code, said, "")


def in_a_terminal(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Exit code and output of `kora COMMAND` at a terminal at which nobody types: a fork."""
    mine, theirs = pty.openpty()
    process = start(command, (theirs,) * 3, folder, environment)
    os.close(theirs)
    out, end = b"", time.monotonic() + 120
    try:
        while time.monotonic() < end:
            if select.select([mine], [], [], 0.5)[0]:
                try:
                    out += os.read(mine, 65536)
                except OSError:  # Linux says so when the other side has closed
                    break
            elif process.poll() is not None:
                break
        else:
            pytest.fail(f"still waiting after two minutes; its last words: {out[-500:].decode()}")
        return process.wait(timeout=30), out.decode()
    finally:
        process.kill()
        process.wait()
        os.close(mine)
