"""What the benchmarks share: contenders in turn, ratios within a round, tables, files and pictures.

Whatever else a machine does falls on all contenders alike when each works in turn. So times are
compared within a round only, and what is told is the median of these ratios, with the lowest and
the highest. On the CPU the seconds of the process alone are measured too, which say more on a busy
machine. The first round is not counted. Denormal numbers are zero while it is measured, as they are
while `kora fit` trains on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kora.reports.canvas import BLUE, GREY, new_figure, save
from kora.runs.durable import write_text
from kora.tasks.callbacks import flushed

__all__ = [
    "PRODUCT",
    "add_options",
    "add_ratios",
    "chosen_device",
    "in_turn",
    "machine",
    "product_rate",
    "ratio_bars",
    "shown",
    "slope",
    "spread",
    "table",
    "write",
]

SPENT = ("seconds", "cpu seconds")
#: Side of the matrices of `product_rate`.
PRODUCT = {"cuda": 8192, "cpu": 1024}

Found = dict[str, dict[str, Any]]


def add_options(
    parser: argparse.ArgumentParser, *, repeats: int, devices: Sequence[str] = ("cpu", "cuda")
) -> None:
    """The options of every benchmark."""
    if len(devices) > 1:
        parser.add_argument("--device", choices=devices, default="cpu")
    parser.add_argument("--repeats", type=int, default=repeats, help="rounds that are counted")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--out", type=Path, help="folder for the numbers and the picture")


def chosen_device(parser: argparse.ArgumentParser, own: argparse.Namespace) -> torch.device:
    """The device of the options; ends the command where they cannot be followed."""
    for name in ("batch", "repeats"):
        if getattr(own, name, 1) < 1:
            parser.error(f"--{name} {getattr(own, name)}: expected 1 or more.")
    if own.out is not None and own.out.is_file():
        parser.error(f"--out {own.out} is a file; expected a folder.")
    device = getattr(own, "device", "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here. Use --device cpu.")
    return torch.device(device)


def in_turn(
    runs: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Seconds of every round by name and, on a GPU, the peak of its memory."""
    kinds = SPENT if device.type == "cpu" else SPENT[:1]
    found: Found = {name: {kind: [] for kind in kinds} for name in runs}
    with flushed(device):
        for repeat in range(repeats + 1):
            for name, run in runs.items():
                spent = _spent(run, device)
                for kind in kinds if repeat else ():
                    found[name][kind].append(spent[kind])
                if device.type == "cuda":
                    found[name]["peak_mib"] = spent["peak_mib"]
            print(f"\rround {repeat} of {repeats}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def _spent(run: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Seconds of both kinds and, on a GPU, the peak of its memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    begun = time.process_time()
    spent = {"seconds": seconds(run, device), "cpu seconds": time.process_time() - begun}
    if device.type == "cuda":
        spent["peak_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
    return spent


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Wall time until the device is done."""
    begun = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def add_ratios(found: Found, to: str) -> None:
    """Add the ratio of every round to that of another contender: median, lowest, highest."""
    for one in found.values():
        for kind in SPENT:
            if kind in one:
                pairs = zip(one[kind], found[to][kind], strict=True)
                one[f"{kind} / {to}"] = spread([mine / theirs for mine, theirs in pairs])


def spread(numbers: Sequence[float]) -> list[float]:
    """Median, lowest and highest."""
    return [statistics.median(numbers), min(numbers), max(numbers)]


def shown(three: Sequence[float]) -> str:
    """A spread in a cell of a table."""
    middle, low, high = three
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The power with which values grow: the slope of the line through their logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def product_rate(device: torch.device, kind: torch.dtype) -> float:
    """GFLOP/s of one large matrix product, the best of three; on the CPU, of its own seconds."""
    side = PRODUCT[device.type]
    left, right = torch.ones(2, side, side, device=device, dtype=kind).unbind()
    runs = in_turn({"product": lambda: left @ right}, 3, device)["product"]
    return float(2 * side**3 / min(runs[SPENT[-1] if SPENT[-1] in runs else SPENT[0]]) / 1e9)


def machine(device: torch.device | None = None) -> str:
    """Processor or card, threads, load, and the versions that matter."""
    if device is not None and device.type == "cuda":
        what = torch.cuda.get_device_name(device)
    else:
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        what = (
            f"{(named or [platform.processor()])[0]}, {torch.get_num_threads()} threads on "
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        )
    return f"{what}; Python {platform.python_version()}, torch {torch.__version__}"


def write(
    own: argparse.Namespace,
    name: str,
    record: Mapping[str, Any],
    draw: Callable[[Path], object] | None = None,
    *,
    device: torch.device | None = None,
) -> None:
    """Write what was asked for: the JSON, and with --out the picture beside it, if there is one."""
    options = {k: str(v) if isinstance(v, Path) else v for k, v in vars(own).items()}
    content = {"benchmark": name, **options, "machine": machine(device), **record}
    out = getattr(own, "out", None)
    for path in (own.json, None if out is None else out / f"{name}.json"):
        if path is not None:
            write_text(path, json.dumps(content, indent=1) + "\n")
    if out is not None and draw is not None:
        draw(out / f"{name}.png")
        print(f"\nWritten: {out / name}.json and .png")


def ratio_bars(path: Path, ratios: Mapping[str, Sequence[float]], *, title: str, axis: str) -> Path:
    """Horizontal bars of medians with whiskers from the lowest to the highest, and a line."""
    figure, (axes,) = new_figure(1, size=(8, 1.3 + 0.36 * len(ratios)), title=title)
    places = range(len(ratios))
    middles = [three[0] for three in ratios.values()]
    below = [three[0] - three[1] for three in ratios.values()]
    above = [three[2] - three[0] for three in ratios.values()]
    axes.barh(places, middles, color=BLUE, height=0.65, xerr=(below, above), ecolor=GREY, capsize=2)
    right = max(three[2] for three in ratios.values())
    for place, three in zip(places, ratios.values(), strict=True):
        axes.text(
            three[2] + 0.012 * right, place, f"{three[0]:.2f}", va="center", fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    axes.axvline(1.0, color=GREY, linewidth=1, linestyle="--", zorder=0.5)
    axes.set_yticks(places, list(ratios), fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1 * right)
    axes.set_xlabel(axis, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return save(figure, path)
