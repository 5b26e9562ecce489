"""Runs that are stopped and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.support.cli import tiny_config

SEED0 = Path("runs/tiny/Bottleneck/seed0")


def config(data: dict[str, Any] | None = None, **trainer: Any) -> dict[str, Any]:
    """Six batches an epoch, with everything that draws: shuffle, augmentation, drop path."""
    made = tiny_config()
    made["model"]["init_args"]["adapter"] = {
        "class_path": "kora.adapters.Bottleneck", "init_args": {"drop_path": 0.3},
    }  # fmt: skip
    made["data"]["init_args"] |= {"batch_size": 7, "augment": "flip_crop_color", **(data or {})}
    faults = [{"class_path": "tests.support.armed.Fault"}]
    made["trainer"] |= {"max_epochs": 3, "log_every_n_steps": 1, "callbacks": faults} | trainer
    return made


def checkpoint(folder: Path, name: str = "last") -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True)
    return content
