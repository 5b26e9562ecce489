"""What a training step costs: LoRA, KoRA, their peers, and the frozen backbone.

All contenders are built on copies of one backbone with random weights and get the same images. In
every round each makes one step (forward, backward, fused AdamW) in turn, so that whatever else the
machine does falls on all alike; times are given as ratios within a round. The first round is not
counted. Operations and kept bytes are counted, and are the same on every machine.

    python benchmarks/training_step.py [--model vit_base_patch16_224] [--batch 16]
        [--precision float32|bfloat16] [--device cpu|cuda] [--repeats 5] [--steps NAME ...]
        [--json FILE] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `tests` and `benchmarks`

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.contenders import (
    CLASSES,
    CONTENDERS,
    DEFAULT,
    FORWARD,
    PEER,
    Frozen,
    contenders,
    shared,
)
from benchmarks.measuring import (
    add_options,
    add_ratios,
    chosen_device,
    in_turn,
    machine,
    product_rate,
    ratio_bars,
    shown,
    table,
    write,
)
from kora.backbone.vit import Backbone
from kora.tasks.optim import fuse_on_cpu
from tests.support.counted import counted_step


class Step:
    """One training step of a module, in a precision; without gradients, its forward pass alone."""

    def __init__(self, module: nn.Module, images: Tensor, *, bfloat16: bool, trains: bool) -> None:
        self.module = module.to(images.device).train(trains)
        self.images = images
        self.labels = torch.arange(len(images), device=images.device) % CLASSES
        self.bfloat16 = bfloat16
        trained = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = fuse_on_cpu(torch.optim.AdamW(trained)) if trains else None

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


def measured(steps: dict[str, Step], repeats: int, device: torch.device) -> dict[str, Any]:
    """Counts and seconds of every step, by name."""
    counts = {name: step.counted() for name, step in steps.items()}
    found = in_turn(steps, repeats, device)
    for name, (gflop, mib) in counts.items():
        found[name] |= {"gflop": gflop, "kept_mib": mib}
    return found


def rendered(found: dict[str, Any], batch: int, rate: float) -> str:
    """Rows in Markdown."""
    bases = [key for key in found[FORWARD] if " / " in key]
    columns = ["step", "GFLOP", "kept, MiB", "images/s", "of the product rate", *bases]
    columns += ["peak, MiB"] if "peak_mib" in found[FORWARD] else []
    rows = []
    for name, one in found.items():
        median = statistics.median(one["seconds"])
        row = [name, f"{one['gflop']:.1f}", f"{one['kept_mib']:.1f}", f"{batch / median:.1f}"]
        own = statistics.median(one.get("cpu seconds", one["seconds"]))
        row += [f"{one['gflop'] / own / rate:.2f}", *(shown(one[base]) for base in bases)]
        rows.append(row + ([f"{one['peak_mib']:.0f}"] if "peak_mib" in one else []))
    return table(columns, rows)


def main(args: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write JSON and a picture where asked."""
    parser = argparse.ArgumentParser(description="What a training step costs.")
    parser.add_argument("--model", default="vit_base_patch16_224", help="a ViT of timm")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument(
        "--steps", nargs="+", dest="names", choices=CONTENDERS, default=DEFAULT, metavar="NAME",
        help=f"which steps, of: {', '.join(CONTENDERS)}",
    )  # fmt: skip
    add_options(parser, repeats=5)
    own = parser.parse_args(args)
    device, bfloat16 = chosen_device(parser, own), own.precision == "bfloat16"
    torch.manual_seed(0)
    try:
        backbone = Backbone(own.model, weights="random")
    except ValueError as error:
        parser.error(f"--model: {error}")
    shape = (own.batch, 3, *backbone.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8).to(device)
    backbone = backbone.to(device)  # before it is shared: moving would part the copies
    step = partial(Step, images=images, bfloat16=bfloat16)
    modules = contenders(backbone, own.names)
    steps = {name: step(module, trains=True) for name, module in modules.items()}
    steps[FORWARD] = step(Frozen(shared(backbone)).to(device), trains=False)
    found = measured(steps, own.repeats, device)
    bases = [base for base in (PEER, FORWARD) if base in found]
    for base in bases:
        add_ratios(found, base)
    rate = product_rate(device, getattr(torch, own.precision))
    setting = f"{own.model}, {own.batch} images of {backbone.size[0]} x {backbone.size[1]}"
    print(
        f"\n{setting}, {own.precision}, medians of {own.repeats} rounds (lowest to highest)\n\n"
        f"{rendered(found, own.batch, rate)}\n\n"
        f"One large product: {rate:.0f} GFLOP/s. {machine(device)}"
    )
    kind = f"{'cpu ' if device.type == 'cpu' else ''}seconds"
    bars = {name: one[f"{kind} / {bases[0]}"] for name, one in found.items()}
    write(
        own,
        "training_step",
        {"product_gflops": rate, "steps": found},
        partial(
            ratio_bars,
            ratios=bars,
            title=f"One training step: {setting}, {own.precision}",
            axis=f"{kind} of a step / those of {bases[0]} (median; whiskers: lowest, highest)",
        ),
        device=device,
    )


if __name__ == "__main__":
    main()
