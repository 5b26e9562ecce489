"""The config of a finished run, as its folder keeps it."""

from __future__ import annotations

from typing import Any

CONFIG: dict[str, Any] = {
    "seed_everything": 3,
    "experiment": "target",
    "runs_dir": "elsewhere",
    "source": "source.yaml",
    "wandb": {"mode": "disabled"},
    "trainer": {
        "accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto",
        "precision": "bf16-mixed", "enable_progress_bar": False, "max_epochs": 7, "logger": None,
    },
    "model": {
        "class_path": "kora.tasks.ClassificationTask",
        "init_args": {
            "backbone": {"name": "vit_nano"}, "adapter": {"class_path": "LoRA"}, "head_lr": 0.1,
            "optimizer": {"class_path": "SGD"}, "adapter_from": None,
        },
    },
    "data": {"class_path": "datamodules.Synthetic", "init_args": {"style": "night"}},
}  # fmt: skip
