"""The JSON of an adapter folder, read without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kora.runs.durable import expand, has_other_content
from kora.runs.record_types import check_types

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_FORMAT",
    "local_adapter_folder",
    "read_adapter_config",
    "run_of",
]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FORMAT = 1

#: Keys of every record, with their types.
_RECORD = (
    ("adapter", "class_path", str),
    ("adapter", "init_args", dict),
    ("backbone", "name", str),
    ("backbone", "sha256", str),
)

#: Keys that only newer versions write, with their types.
_TYPES = {
    "a text": "class_names.* weights.source preprocessing.steps.*.step",
    "a list": "preprocessing.steps",
    "a table of values": "preprocessing.steps.*",
    "a number below 1e100": "metrics.*",
}
_TYPES_OR_NONE = {
    "a list": "class_names",
    "a table of values": "weights metrics preprocessing task",
}


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The JSON of an adapter folder.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is of another format.
        RuntimeError: If it cannot be read, or its content has changed.
    """
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is no adapter folder: it has no {ADAPTER_CONFIG}. Every run writes one as "
            "runs/<experiment>/<strategy>/seed<k>/version_<n>/adapter."
        )
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        same_format = record["format"] == ADAPTER_FORMAT
        if same_format:
            _check_types(record)
            for source in record["adapter"].get("sources", ()):  # a fusion keeps theirs
                _check_types(source)
            check_types(record, _TYPES, _TYPES_OR_NONE)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        absent = isinstance(error, KeyError)
        reason = f"key {error} is missing" if absent else str(error).rstrip(".")
        raise RuntimeError(f"{path} is damaged: {reason}. Train the adapter again.") from error
    if same_format and has_other_content(record):
        raise RuntimeError(
            f"{path} is damaged or was edited: its content does not match its record_sha256. Copy "
            "it again or train the adapter again; to keep an edit, delete the key record_sha256."
        )
    if not same_format:
        raise ValueError(
            f"{path} is of format {record['format']!r}, written by kora "
            f"{record.get('kora_version')}; this version reads format {ADAPTER_FORMAT}. Train the "
            "adapter again, or use that version."
        )
    return record


def _check_types(record: Any) -> None:
    for part, key, kind in _RECORD:
        if not isinstance(record[part][key], kind):
            raise TypeError(f"{part}.{key} is {record[part][key]!r}, no {kind.__name__}")


def local_adapter_folder(path: str | Path) -> Path:
    """The adapter folder of a path: the path itself, or that of a run."""
    folder = expand(path)
    inner = folder / "adapter"
    return inner if (inner / ADAPTER_CONFIG).is_file() else folder


def run_of(folder: Path) -> Path:
    """The folder of a run, also if the folder `adapter` in it was named."""
    return folder.parent if folder.name == "adapter" else folder
