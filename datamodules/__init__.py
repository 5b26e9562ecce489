"""Data modules: uint8 images at native size, honest splits, a record of both."""

from datamodules.base import ImageDataModule
from datamodules.splits import Subset

__all__ = ["ImageDataModule", "Subset"]
