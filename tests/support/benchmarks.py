"""Run a benchmark by its `main`: importing torch anew for each would take most of the time."""

from __future__ import annotations

import importlib
import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

__all__ = ["refused", "written", "written_alone"]


def written(name: str, folder: Path, *args: str) -> tuple[dict[str, Any], str]:
    """The record that a benchmark writes into a folder, beside a picture; and what it printed."""
    printed = _printed(name, *args, "--out", str(folder))
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    return _record(folder / f"{name}.json", printed), printed


def written_alone(name: str, folder: Path, *args: str) -> tuple[dict[str, Any], str]:
    """The same of a benchmark that draws no picture."""
    file = folder / f"{name}.json"
    printed = _printed(name, *args, "--json", str(file))
    return _record(file, printed), printed


def _printed(name: str, *args: str) -> str:
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(io.StringIO()):
        importlib.import_module(f"benchmarks.{name}").main(args)
    return out.getvalue()


def _record(file: Path, printed: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(file.read_text())
    assert record["machine"] in printed
    return record


def refused(name: str, *args: str) -> str:
    """The one clear error of a wrong option."""
    err = io.StringIO()
    with redirect_stderr(err), pytest.raises(SystemExit) as stop:
        importlib.import_module(f"benchmarks.{name}").main(list(args))
    assert stop.value.code == 2
    return err.getvalue()
