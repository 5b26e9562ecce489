"""How fast NYU Depth V2 is read: frames a second from the labelled file, and from its cache.

Writes a synthetic labelled file at 480 x 640 in the real format (MATLAB v7.3, gzip) to a temporary
folder, and reads its training batches through the data module's own loader, without and with the
cache in turn, in one process. The first epoch of each is not counted: it starts the loader
processes and fills the page cache.

    python benchmarks/nyu_loading.py [--frames 300] [--workers 4] [--batch 16] [--repeats 3]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `tests` and `benchmarks`

import h5py
import numpy as np
import torch

from benchmarks.measuring import machine, table
from datamodules import NYUDepthV2
from tests.support.depth_factory import write_labelled, write_splits


def main(args: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="Frames a second of NYUDepthV2.")
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    own = parser.parse_args(args)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        print(f"writing {own.frames} frames ...", flush=True)
        write_labelled(root / "nyu_depth_v2_labeled.mat", frames=own.frames, size=(480, 640))
        write_splits(root / "splits.mat", train=range(1, own.frames), test=[own.frames])

        def module(cache: str) -> NYUDepthV2:
            return NYUDepthV2(
                str(root),
                cache=str(root / cache),
                val_fraction=0,
                batch_size=own.batch,
                num_workers=own.workers,
            )

        module("cache").prepare_cache()
        loaders = {name: module(name).train_dataloader() for name in ("none", "cache")}
        seen: dict[str, list[float]] = {name: [] for name in loaders}
        for repeat in range(own.repeats + 1):
            for name, loader in loaders.items():
                begun, frames = time.perf_counter(), 0
                for batch in loader:
                    frames += len(batch["image"])
                    assert batch["depth_m"].dtype == torch.float32
                if repeat:
                    seen[name].append(frames / (time.perf_counter() - begun))
        print(f"\n{own.workers} workers, batches of {own.batch}, 480 x 640; frames/s\n")
        rows = []
        for name, label in (("none", "labelled file"), ("cache", "cache")):
            rates = seen[name]
            every = ", ".join(f"{rate:.0f}" for rate in rates)
            rows.append([label, f"{max(rates):.0f}", f"{np.median(rates):.0f}", every])
        print(table(["read from", "best", "median", "all"], rows))
        print(f"\n{machine()}, h5py {h5py.__version__}, NumPy {np.__version__}")


if __name__ == "__main__":
    main()
