"""The curves of a run, read from its metrics.csv."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from kora.console.formats import is_better_higher

__all__ = ["CURVES", "Curve", "best_step", "read_curves", "tested_place"]

Curve = tuple[list[int], list[float]]  # steps and values

#: Metrics drawn for training and validation, with the labels of their axes.
CURVES = {
    "loss": "loss",
    "accuracy": "accuracy",
    "rmse_m": "RMSE of depth (m)",
    "miou": "mIoU",
    "map": "mAP",
}


def read_curves(path: Path) -> dict[str, Curve]:
    """Each column's values with their steps; rows are sparse, those without a step are skipped.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. It is in the folder of a run.")
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


def tested_place(
    curves: Mapping[str, Curve], name: str, tested_step: int | None
) -> tuple[int, bool] | None:
    """The step of the tested weights on the axis, and whether the record has it.

    A record counts the steps made, the axis counts from 0. Records of earlier versions lack it;
    then it is the step of the best validation of the metric (`name` has no stage), which is the
    checkpoint that `kora fit` tests. None if there is no validation either.
    """
    if tested_step is not None:
        return max(tested_step - 1, 0), True
    found = best_step(curves, f"val/{name}")
    return None if found is None else (found, False)


def best_step(curves: Mapping[str, Curve], metric: str) -> int | None:
    """The first step with the best value; None if there is no value."""
    if metric not in curves:
        return None
    sign = 1 if is_better_higher(metric) else -1
    pairs = [(sign * v, -s) for s, v in zip(*curves[metric], strict=True)]
    pairs = [pair for pair in pairs if pair[0] == pair[0]]
    return -max(pairs)[1] if pairs else None
