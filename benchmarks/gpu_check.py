"""Does KoRA do on this card what it does on the CPU, and how fast? One page to paste.

Trains the quickstart by `kora fit` with each strategy on the CPU and on the card, and compares the
losses of all logged steps. Kills a run on the card and resumes it. Then runs the benchmarks there.

    python benchmarks/gpu_check.py [--device cuda] [--strategies NAME ...] [--skip_benchmarks]
        [--out FOLDER]
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `benchmarks`

import torch

import kora
from benchmarks.measuring import chosen_device, machine, table
from kora.runs.durable import write_text

#: Files of configs/adapters: one of each kind of strategy.
STRATEGIES = (
    "linear_probe", "multi_layer_probe", "bitfit", "lora", "dora", "adapter_plus", "vpt",
    "kora", "kora_side", "kora_refined", "kora_over_lora",
)  # fmt: skip
#: What is run, how it is set, and how far losses may be from those of the CPU in float32.
WAYS = (
    ("float32", ["--trainer.precision", "32-true"], 1e-3),
    ("bfloat16", ["--trainer.precision", "bf16-mixed"], 0.1),
)
BENCHMARKS = (
    ["training_step.py", "--precision", "float32"],
    ["training_step.py", "--precision", "bfloat16"],
    ["growth.py"],
    ["merged.py"],
    ["multi_task.py"],
    ["feature_cache.py"],
)
_ACCELERATOR = {"cpu": "cpu", "cuda": "gpu"}


def fit(folder: Path, strategy: str, device: str, *more: str) -> list[str]:
    """The command of a fit in a folder of its own."""
    return [
        sys.executable, "-m", "kora", "fit", "--config", "quickstart",
        "--config", f"adapters/{strategy}", "--source", "null", "--leave_out_test", "true",
        "--trainer.max_epochs", "2", "--trainer.accelerator", _ACCELERATOR[device],
        "--trainer.devices", "1", "--runs_dir", str(folder), *more,
    ]  # fmt: skip


def run(command: Sequence[str], log: Path) -> int:
    """Run a command; its output goes into a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        return subprocess.run(
            command,
            stdout=file,
            stderr=file,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            check=False,
        ).returncode


def _environment() -> dict[str, str]:
    return {**os.environ, "WANDB_MODE": "disabled"}


def losses(folder: Path) -> list[float]:
    """The training losses of the newest run below a folder."""
    *_, newest = sorted(folder.glob("*/*/seed*/version_*/metrics.csv"))
    with newest.open(encoding="utf-8", newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]


def seconds(folder: Path) -> float:
    """How long the newest fit below a folder took."""
    *_, newest = sorted(folder.glob("*/*/seed*/version_*/results.json"))
    found: float = json.loads(newest.read_text(encoding="utf-8"))["seconds"]["fit"]
    return found


def compared(strategy: str, device: str, out: Path) -> list[list[str]]:
    """A row for each way to train a strategy: its losses beside those of the CPU in float32."""
    base, log = out / "cpu" / strategy, out / "logs" / f"{strategy}-cpu.log"
    if run(fit(base, strategy, "cpu", "--trainer.precision", "32-true"), log):
        return [[strategy, "CPU", "failed", "", "", "no"]]
    expected, rows = losses(base), []
    for name, options, allowed in WAYS:
        folder = out / device / name / strategy
        log = out / "logs" / f"{strategy}-{device}-{name}.log"
        if run(fit(folder, strategy, device, *options), log):
            rows.append([strategy, name, "failed", "", "", "no"])
            continue
        found = losses(folder)
        far = furthest(expected, found)
        good = far <= allowed
        times = f"{seconds(base):.1f}", f"{seconds(folder):.1f}"
        rows.append([strategy, name, f"{far:.1e}", *times, "yes" if good else "no"])
    return rows


def furthest(expected: list[float], found: list[float]) -> float:
    """The largest difference between losses; infinite if one run lacks some."""
    if len(found) != len(expected) or not expected:
        return math.inf
    return max(abs(a - b) for a, b in zip(expected, found, strict=True))


def resumed(device: str, out: Path) -> list[str]:
    """A row: a run that is killed on the card and resumed has the losses of one that is not."""
    whole, killed = out / "whole", out / "killed"
    often = ("--save.every_steps", "1", "--trainer.precision", "32-true")
    if run(fit(whole, "lora", device, *often), out / "logs" / "whole.log"):
        return ["killed and resumed", "failed", "no"]
    log = out / "logs" / "killed.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            fit(killed, "lora", device, *often), stdout=file, stderr=file,
            stdin=subprocess.DEVNULL, env=_environment(),
        )  # fmt: skip
        while process.poll() is None and not list(killed.glob("*/*/seed*/*/checkpoints/last.ckpt")):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    if run(fit(killed, "lora", device, *often, "--resume", "true"), out / "logs" / "resumed.log"):
        return ["killed and resumed", "failed", "no"]
    far = furthest(losses(whole), losses(killed))
    return ["killed and resumed", f"{far:.1e}", "yes" if far <= 1e-4 else "no"]


def of_machine(device: torch.device) -> list[str]:
    """What the page says of the machine."""
    lines = [f"kora {kora.__version__}, {platform.platform()}, {date.today()}", machine(device)]
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        lines.append(
            f"{card.total_memory / 2**30:.0f} GiB, compute capability {card.major}.{card.minor}, "
            f"CUDA {torch.version.cuda}"
        )
    return lines


def benchmarks(device: str, out: Path) -> Iterator[str]:
    """What each benchmark prints on the card."""
    for name, *options in BENCHMARKS:
        print(f"{' '.join([name, *options])} ...", file=sys.stderr, flush=True)
        log = out / "logs" / f"{'-'.join([name, *options])}.log"
        command = [sys.executable, str(Path(__file__).with_name(name)), "--device", device]
        with log.open("wb") as file:  # what it says of its progress
            done = subprocess.run(
                [*command, *options], stdout=subprocess.PIPE, stderr=file, text=True,
                stdin=subprocess.DEVNULL, env=_environment(), check=False,
            )  # fmt: skip
        said = f"failed: see {log}" if done.returncode else done.stdout.strip()
        yield f"## {' '.join([name, *options])}\n\n{said}\n"


def main(args: Sequence[str] | None = None) -> int:
    """Check, write the page, and print it; returns 1 if something is not as on the CPU."""
    parser = argparse.ArgumentParser(description="Check KoRA on a card against the CPU.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--skip_benchmarks", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_check"))
    own = parser.parse_args(args)
    device = chosen_device(parser, own)
    out = own.out / time.strftime("%Y%m%d-%H%M%S")
    rows: list[list[str]] = []
    for strategy in own.strategies:
        print(f"{strategy} ...", file=sys.stderr, flush=True)
        rows += compared(strategy, own.device, out)
    fault = resumed(own.device, out)
    head = ["strategy", "precision", "loss, farthest from the CPU's", "CPU, s", "here, s", "as is"]
    page = [
        f"# KoRA on {own.device}", "", *of_machine(device), "",
        "Two epochs of the quickstart; float32 on the CPU is the reference.", "",
        table(head, rows), "", table(["fault", "loss, farthest", "as is"], [fault]), "",
    ]  # fmt: skip
    report = write_text(out / "report.md", "\n".join(page))
    if not own.skip_benchmarks:
        for said in benchmarks(own.device, out):  # each as it comes: together they take long
            page.append(said)
            write_text(report, "\n".join(page))
    print("\n".join(page))
    print(f"Written to {report}", file=sys.stderr)
    return int(any(row[-1] != "yes" for row in [*rows, fault]))


if __name__ == "__main__":
    sys.exit(main())
