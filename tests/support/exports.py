"""An export is loaded by the lines that it names."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from kora.export.command import RECORD


def run_lines(out: Path) -> torch.nn.Module:
    """What the lines of export.json make, run as they stand there."""
    names: dict[str, torch.nn.Module] = {}
    lines = json.loads((out / RECORD).read_text())["load"]
    exec("\n".join(lines).replace("FOLDER", str(out)), names)
    return names["model"]
