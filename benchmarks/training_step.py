"""What a training step costs: peft's LoRA, LoRA, KoRA, a linear probe and the frozen backbone.

All contenders are built on copies of one backbone with random weights and get the same images. In
every round each makes one step (forward, backward, AdamW) in turn, so that whatever else the
machine does falls on all alike; times are given as ratios within a round. The first round is not
counted. Operations and kept bytes are counted, and are the same on every machine.

    python benchmarks/training_step.py [--model vit_base_patch16_224] [--batch 16]
        [--precision float32|bfloat16] [--device cpu|cuda] [--repeats 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `tests`

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.adapters import KoRA, LinearProbe, LoRA, Strategy
from kora.backbones import Backbone
from tests.counted import counted_step
from tests.factory import built

CLASSES = 100
PEER, FORWARD = "LoRA of peft", "frozen forward"


class OfPeft(nn.Module):
    """peft's LoRA on the same four layers of each block, and a linear head."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        import peft

        # `proj` also names the convolution of the patch embedding.
        config = peft.LoraConfig(
            r=8,
            lora_alpha=8,
            target_modules=r"blocks\..*\.(qkv|proj|fc1|fc2)",
        )
        self.head = nn.Linear(backbone.pooled_width, CLASSES)
        backbone.model = peft.get_peft_model(backbone.model, config).base_model.model
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """Logits of (B, 3, H, W) images."""
        logits: Tensor = self.head(self.backbone(images).pooled)
        return logits


def contenders(backbone: Backbone) -> dict[str, nn.Module]:
    """Modules from images to logits, by name."""

    def with_adapter(strategy: Strategy) -> nn.Module:
        return built(strategy, backbone=copy.deepcopy(backbone), num_classes=CLASSES)

    made: dict[str, nn.Module] = {}
    if importlib.util.find_spec("peft"):
        made[PEER] = OfPeft(copy.deepcopy(backbone))
    else:
        print("peft is not installed (pip install peft), so it is left out.", file=sys.stderr)
    made["LoRA"] = with_adapter(LoRA(8))
    made["KoRA"] = with_adapter(KoRA(8, 8))
    made["KoRA-side"] = with_adapter(KoRA(8, 8, inject=False))
    made["linear probe"] = with_adapter(LinearProbe())
    return made


class Step:
    """One training step of a module, in a precision; without gradients, its forward pass alone."""

    def __init__(self, module: nn.Module, images: Tensor, *, bfloat16: bool, trains: bool) -> None:
        self.module = module.to(images.device).train(trains)
        self.images = images
        self.labels = torch.arange(len(images), device=images.device) % CLASSES
        self.bfloat16 = bfloat16
        trained = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained) if trains else None

    def loss(self) -> Tensor:
        """Cross-entropy of the images."""
        kind = self.images.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.bfloat16):
            return F.cross_entropy(self.module(self.images), self.labels)

    def __call__(self) -> None:
        """Run it."""
        if self.optimizer is None:
            with torch.no_grad():
                self.loss()
            return
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def counted(self) -> tuple[float, float]:
        """GFLOP, and MiB kept for backward (with casts of weights that are not cached)."""
        if self.optimizer is None:
            with torch.no_grad():
                return counted_step(self.module, lambda: _leaf(self.loss()))
        counted = counted_step(self.module, self.loss)
        self.optimizer.zero_grad()
        return counted


def _leaf(loss: Tensor) -> Tensor:
    """Something that can run backward, to no cost."""
    with torch.enable_grad():
        return loss.detach().requires_grad_() * 1


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Wall time until the device is done."""
    begun = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def product_rate(device: torch.device, kind: torch.dtype) -> float:
    """GFLOP/s of one large matrix product, the best of three."""
    side = 8192 if device.type == "cuda" else 1024
    left, right = torch.ones(2, side, side, device=device, dtype=kind).unbind()
    left @ right
    best = min(seconds(lambda: left @ right, device) for _ in range(3))
    return float(2 * side**3 / best / 1e9)


def measured(steps: dict[str, Step], repeats: int, device: torch.device) -> dict[str, Any]:
    """Counts, seconds of every round, and the peak of memory on a GPU, by name.

    On the CPU also the seconds of this process alone, which say more on a busy machine.
    """
    found: dict[str, Any] = {}
    for name, step in steps.items():
        gflop, mib = step.counted()
        found[name] = {"gflop": gflop, "kept_mib": mib, "seconds": []}
        if device.type == "cpu":
            found[name]["cpu seconds"] = []
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            begun = time.process_time()
            spent = {"seconds": seconds(step, device), "cpu seconds": time.process_time() - begun}
            for kind, number in spent.items():
                if repeat and kind in found[name]:
                    found[name][kind].append(number)
            if device.type == "cuda":
                found[name]["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
        print(f"round {repeat} of {repeats}", file=sys.stderr, flush=True)
    return found


def ratios(found: dict[str, Any], to: str) -> None:
    """Add the ratio of every round to that of another contender: median, lowest, highest."""
    for one in found.values():
        for kind in ("seconds", "cpu seconds"):
            if kind in one:
                pairs = zip(one[kind], found[to][kind], strict=True)
                each = [mine / theirs for mine, theirs in pairs]
                one[f"{kind} / {to}"] = [statistics.median(each), min(each), max(each)]


def table(found: dict[str, Any], batch: int, rate: float) -> str:
    """Rows in Markdown."""
    bases = [key for key in found[FORWARD] if " / " in key]
    columns = ["step", "GFLOP", "kept, MiB", "images/s", "of the product rate"]
    columns += bases
    columns += ["peak, MiB"] if "peak_mib" in found[FORWARD] else []
    rows = [columns, ["---"] * len(columns)]
    for name, one in found.items():
        median = statistics.median(one["seconds"])
        row = [name, f"{one['gflop']:.1f}", f"{one['kept_mib']:.1f}", f"{batch / median:.1f}"]
        row.append(f"{one['gflop'] / median / rate:.2f}")
        for base in bases:
            middle, low, high = one[base]
            row.append(f"{middle:.3f} ({low:.3f} to {high:.3f})")
        row += [f"{one['peak_mib']:.0f}"] if "peak_mib" in one else []
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def machine(device: torch.device) -> str:
    """Processor or card, threads, load, and the versions that matter."""
    if device.type == "cuda":
        what = torch.cuda.get_device_name(device)
    else:
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        load = os.getloadavg()[0]
        what = (
            f"{(named or [platform.processor()])[0]}, {torch.get_num_threads()} threads on "
            f"{os.cpu_count()} cores, load {load:.1f}"
        )
    return f"{what}; Python {platform.python_version()}, torch {torch.__version__}"


def main(args: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description="What a training step costs.")
    parser.add_argument("--model", default="vit_base_patch16_224", help="a ViT of timm")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    own = parser.parse_args(args)
    if own.batch < 1 or own.repeats < 1:
        parser.error(f"--batch {own.batch} --repeats {own.repeats}: expected 1 or more.")
    if own.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here. Use --device cpu.")
    torch.manual_seed(0)
    try:
        backbone = Backbone(own.model, weights="random")
    except ValueError as error:
        parser.error(f"--model: {error}")
    device, bfloat16 = torch.device(own.device), own.precision == "bfloat16"
    shape = (own.batch, 3, *backbone.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8).to(device)
    modules = contenders(backbone)
    steps = {n: Step(m, images, bfloat16=bfloat16, trains=True) for n, m in modules.items()}
    probe = modules["linear probe"]
    frozen = copy.deepcopy(probe)
    steps[FORWARD] = Step(frozen, images, bfloat16=bfloat16, trains=False)
    found = measured(steps, own.repeats, device)
    for base in (PEER, FORWARD):
        if base in found:
            ratios(found, base)
    rate = product_rate(device, getattr(torch, own.precision))
    print(
        f"\n{own.model}, {own.batch} images of {backbone.size[0]} x {backbone.size[1]}, "
        f"{own.precision}, medians of {own.repeats} rounds (lowest to highest)\n"
    )
    print(table(found, own.batch, rate))
    print(f"\nOne large product: {rate:.0f} GFLOP/s. {machine(device)}")
    if own.json is not None:
        record = {**vars(own), "json": str(own.json), "machine": machine(device)}
        record |= {"product_gflops": rate, "steps": found}
        own.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
