"""The curves of a run, read from its metrics.csv."""

from __future__ import annotations

import csv
from pathlib import Path

__all__ = ["Curve", "read_curves"]

Curve = tuple[list[int], list[float]]  # steps and values


def read_curves(path: Path) -> dict[str, Curve]:
    """Each column's values with their steps; rows are sparse, and those without a step are left.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. It lies in the folder of a run.")
    curves: dict[str, Curve] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for column, text in row.items():
                if column in ("epoch", "step") or not text or not row.get("step"):
                    continue
                steps, values = curves.setdefault(column, ([], []))
                steps.append(int(row["step"]))
                values.append(float(text))
    return curves
