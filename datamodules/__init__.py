"""Data modules: uint8 images at native size, honest splits, a record of both."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.classes import (
        CIFAR,
        CamVid,
        DetectionFolder,
        ImageDataModule,
        ImageFolder,
        ImageTable,
        NYUDepthV2,
        SegmentationFolder,
        Subset,
        Synthetic,
        TinyImageNet,
    )

__all__ = [
    "CIFAR",
    "CamVid",
    "DetectionFolder",
    "ImageDataModule",
    "ImageFolder",
    "ImageTable",
    "NYUDepthV2",
    "SegmentationFolder",
    "Subset",
    "Synthetic",
    "TinyImageNet",
]


def __getattr__(name: str) -> Any:
    """Import the classes, and torch, when one is first asked for: a lock, say, needs none."""
    if not name.startswith("_"):
        classes = vars(import_module("datamodules.classes"))
        globals().update({one: kind for one, kind in classes.items() if not one.startswith("_")})
        if name in globals():
            return globals()[name]
    raise AttributeError(f"module 'datamodules' has no attribute '{name}'")
