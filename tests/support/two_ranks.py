"""Run a function on two real processes that Lightning trains as one, over gloo."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

__all__ = ["QUIET", "free_port", "on_two_ranks"]

#: Options of a Trainer that writes and shows nothing.
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def on_two_ranks(function: Callable[[int], Any], folder: Path) -> list[Any]:
    """What `function(rank)` returns on each process: tensors and plain types.

    The function is found by its name, so it stands at the top of a test file.
    """
    arguments = (function, str(folder), free_port())
    mp.start_processes(_process, args=arguments, nprocs=2, start_method="fork")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def _process(rank: int, function: Callable[[int], Any], folder: str, port: int) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
        "WORLD_SIZE": "2",
    }
    # Left by another test: Lightning would seed these processes with it, and not the one process.
    os.environ.pop("PL_GLOBAL_SEED", None)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.save(function(rank), Path(folder) / f"rank{rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
