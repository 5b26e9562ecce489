"""Loaders whose workers fail."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

__all__ = ["read_all"]


def read_all(loader: DataLoader[Any]) -> list[Any]:
    """Its batches; after an error its workers end at once.

    Where the garbage collector ends them, it waits ten seconds for each.
    """
    batches: Any = iter(loader)
    try:
        return list(batches)
    finally:
        if loader.num_workers:
            batches._shutdown_workers()
