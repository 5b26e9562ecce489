"""The records of an offline W&B run, read back from its file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from wandb.proto import wandb_internal_pb2

__all__ = ["config_of", "history_of", "offline_folder", "records", "summary_of"]

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
