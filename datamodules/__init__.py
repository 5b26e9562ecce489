"""Data modules: uint8 images at native size, honest splits, a record of both."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.classes import *  # noqa: F403  (its list is the only one)


def __getattr__(name: str) -> Any:
    """Import the classes, and torch, when one is first asked for: a lock, say, needs none."""
    if name == "__all__" or not name.startswith("_"):
        for one, it in vars(import_module("datamodules.classes")).items():
            globals().setdefault(one, it)
        if name in globals():
            return globals()[name]
    raise AttributeError(f"module 'datamodules' has no attribute '{name}'")
