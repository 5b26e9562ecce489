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
    """Import them, and torch, when one is first asked for: what only takes a lock needs none."""
    if name not in __all__:
        raise AttributeError(f"module 'datamodules' has no attribute '{name}'")
    classes = import_module("datamodules.classes")
    globals().update({one: getattr(classes, one) for one in __all__})
    return globals()[name]
