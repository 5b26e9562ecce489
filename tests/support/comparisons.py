"""Records of runs that no one trained, for what compares them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from kora.runs.results import Run, RunResult, write_results

EVALUATION = {
    "split": "official",
    "crop": "eigen",
    "min_depth_m": 0.001,
    "max_depth_m": 10.0,
    "average": "image",
    "align": "none",
    "flip_tta": False,
}

PROTOCOL = {
    "dataset": "Tiny",
    "sizes": {"train": 50, "val": 20, "test": 100},
    "subset": {"per_class": 5},
    "data_sha256": "d0",
}


FILES = ["compare.md", "compare.tex", "compare.csv", "compare.html", "comparison.png"]


def run(strategy: str, seed: int, accuracy: float, *, version: int = 0, **changes: Any) -> Run:
    values: dict[str, Any] = {
        "experiment": "fewshot",
        "strategy": strategy,
        "stage": "fit",
        "seed": seed,
        "metrics": {"test/accuracy": accuracy, "test/loss": 1 - accuracy},
        "baselines": {"chance": {"accuracy": 0.1}, "majority": {"accuracy": 0.12}},
        "protocol": PROTOCOL | {"seed": seed, "sha256": {"train": f"index{seed}"}},
        "audit": {},
        "parameters": {"trainable": 1000, "percent": 1.5},
        "seconds": {"fit": 10.0 + seed},
        "peak_memory_mib": None,
        "backbone": {"name": "vit_nano", "weights": "/a/w.safetensors", "sha256": "b0"},
        "versions": {},
        "commit": None,
        "created": "2026-01-01T00:00:00+00:00",
    }
    made = RunResult(**{**values, **changes})
    folder = Path("runs", made.experiment, strategy, f"seed{seed}", f"version_{version}")
    return Run(folder, made)


def write(root: Path, *runs: Run) -> None:
    for folder, made in runs:
        write_results(root / folder, made)


def screen() -> Console:
    return Console(width=100, record=True, file=io.StringIO())


NYU = {**PROTOCOL, "dataset": "NYU", "subset": {"fraction": 0.01}, "evaluation": EVALUATION}


def depth(strategy: str, seed: int, rmse_m: float, **changes: Any) -> Run:
    values: dict[str, Any] = {
        "experiment": "depth",
        "metrics": {
            "test/rmse_m": rmse_m,
            "test/delta1": 1 - rmse_m,
            "val/rmse_m": 2 * rmse_m,
            "test/skipped_images": 0.0,
        },
        "baselines": {
            "mean_depth": {"rmse_m": 1.25, "delta1": 0.25},
            "mean_map": {"rmse_m": 1.0, "delta1": 0.5},
        },
        "protocol": NYU,
    }
    return run(strategy, seed, 0.0, **{**values, **changes})
