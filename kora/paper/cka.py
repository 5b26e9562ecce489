"""The values of figure 4 of the KoRA paper, from the `cka.json` that `kora cka` writes in a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kora.analysis.layer_cka import FEW

__all__ = ["MATRICES", "cka_command_for", "cka_value", "why_no_cka"]

_FEATURES = "cls"  # as in the published notebook
MATRICES = {"cka/biased": f"biased_cka_of_{FEW}_images", "cka/unbiased": "cka"}


def cka_command_for(folder: str | Path) -> str:
    """The command that fills the cells of a run."""
    return f"kora cka {folder} --features {_FEATURES}"


def why_no_cka(folder: Path) -> str | None:
    """Why a run has no value for the figure; None if it has one."""
    try:
        record = _record(folder)
    except FileNotFoundError:
        return f"{folder}: no CKA yet: {cka_command_for(folder)}"
    if record.get("settings", {}).get("features") != _FEATURES:
        return (
            f"{folder}: its CKA is not of CLS tokens, as the figure is: {cka_command_for(folder)}"
        )
    if any(key not in c for c in record["comparisons"].values() for key in MATRICES.values()):
        return f"{folder}: its CKA is of an earlier version: {cka_command_for(folder)}"
    return None


def cka_value(folder: Path, metric: str, comparison: str) -> float | None:
    """CKA between the middle and the last block, as the notebook picks them (6 and 11 of 12).

    `metric` is of `MATRICES`, `comparison` is `within_run` or `within_frozen`.
    """
    if why_no_cka(folder) is not None:
        return None
    found = _record(folder)["comparisons"][comparison]
    layers, matrix = found["rows"]["layers"], found[MATRICES[metric]]
    depth = sum(layer.startswith("block ") for layer in layers)
    middle, last = (layers.index(f"block {number}") for number in (depth // 2, depth - 1))
    value = None if matrix is None else matrix[middle][last]
    return None if value is None else float(value)


def _record(folder: Path) -> dict[str, Any]:
    file = folder / "cka" / "cka.json"
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(record["comparisons"]["within_run"]["cka"], list):
            raise TypeError("no matrix")
    except (ValueError, KeyError, TypeError) as error:
        again = f"Make it again: {cka_command_for(folder)}"
        raise RuntimeError(f"{file}: damaged, no record of CKA ({error}). {again}") from error
    return record
