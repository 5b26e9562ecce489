"""Checkpoints and outcomes in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from kora.runs.outcomes import Outcomes
from kora.training.checkpoints import CheckedCheckpointIO

RECORD = {"backbone": "vit_nano", "sha256": "0" * 64, "adapter": {"class_path": "x"}}


STATE: dict[str, Any] = {
    "pytorch-lightning_version": "2.5.0", "optimizer_states": [], "lr_schedulers": [], "loops": {},
    "callbacks": {"RunRecord": {"fit_seconds": 1.5}}, "epoch": 0,
    "resume": {"epoch": 0, "batches": 1, "rows": 1, "settings": {}},
}  # fmt: skip


def save(path: Path, *, step: int = 1, **more: Any) -> Path:
    content = {"kora": RECORD, "state_dict": {"head.weight": torch.arange(4000.0)}, **STATE, **more}
    CheckedCheckpointIO().save_checkpoint({"global_step": step, **content}, path)
    return path


def outcomes(size: int = 10_000, classes: int = 100) -> Outcomes:
    rng = np.random.default_rng(0)
    columns = {k: rng.integers(0, classes, size) for k in ("label", "prediction")}
    return Outcomes(np.arange(size), columns)
