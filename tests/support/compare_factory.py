"""Folders of runs with everything that a comparison reads, without training them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from kora.runs.outcomes import Outcomes, write_outcomes
from kora.runs.results import Run, write_results
from tests.support.comparisons import run

__all__ = ["IMAGES", "five_strategies", "run_on_images"]

IMAGES = 100
LABELS = np.arange(IMAGES) % 10


def run_on_images(root: Path, strategy: str, seed: int, right: np.ndarray, **changes: Any) -> Run:
    """A run that was right on these test images (I,), with outcomes and learning curves."""
    made = run(strategy, seed, float(np.mean(right)), **{"tested_step": 40, **changes})
    folder = root / made.folder
    write_results(folder, made.result)
    columns = {"label": LABELS, "prediction": np.where(right, LABELS, (LABELS + 1) % 10)}
    write_outcomes(folder, Outcomes(np.arange(IMAGES), columns))
    best = float(np.mean(right))
    curve = [best * (1 - 0.5 ** (e + 1)) for e in range(6)]
    rows = [f"{e},{8 * e + 7},{v:.4f},{1.1 * v:.4f}" for e, v in enumerate(curve)]
    heads = "epoch,step,val/accuracy,train/accuracy"
    (folder / "metrics.csv").write_text("\n".join([heads, *rows]) + "\n")
    (folder / "learning_curves.png").write_bytes(b"")
    (folder / "adapter").mkdir()
    names = [f"kind {number}" for number in range(10)]
    (folder / "adapter/adapter_config.json").write_text(json.dumps({"class_names": names}))
    return Run(folder, made.result)


def five_strategies(root: Path, *, seeds: int = 3) -> list[Run]:
    """Runs of five strategies, which find the same images easy; KoRA is right on most."""
    runs = []
    kinds = {  # trainable parameters, and about which share of the images is right
        "LinearProbe": (1548, 0.45),
        "LoRA": (105_996, 0.6),
        "KoRA": (107_344, 0.75),
        "KoRA-side": (31_240, 0.5),
        "VPT": (9228, 0.52),
    }
    for seed in range(seeds):
        easy = np.random.default_rng(0).random(IMAGES)  # for all, so that outcomes go together
        shaken = np.random.default_rng(100 + seed).normal(0, 0.05, IMAGES)
        for strategy, (trainable, share) in kinds.items():
            runs.append(
                run_on_images(
                    root, strategy, seed, easy + shaken < share,
                    parameters={"trainable": trainable, "percent": 1.0},
                    peak_memory_mib=900.0 + trainable / 1000 + seed,
                )
            )  # fmt: skip
    return runs
