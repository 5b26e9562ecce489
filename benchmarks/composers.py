"""What each composer of KoRA costs: its numbers, its operations, and a step of it alone.

Random vectors of so many nodes go through every composer in turn, forward and backward; times are
ratios to `ResidualSequential`, whose stages are small MLPs.

    python benchmarks/composers.py [--nodes 48] [--d_comp 8 64] [--batch 64] [--device cpu|cuda]
        [--repeats 15] [--json FILE] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `tests`, and `benchmarks`

import torch
from torch import Tensor

from benchmarks.measuring import (
    add_options,
    add_ratios,
    chosen_device,
    in_turn,
    machine,
    ratio_bars,
    shown,
    table,
    write,
)
from kora.adapters import (
    Composer,
    DepthAttention,
    ResidualSequential,
    Sequential,
    Sum,
)
from tests.support.counted import counted_step

MLP = "ResidualSequential"
COMPOSERS: dict[str, type[Composer]] = {
    "Sum": Sum,
    "Sequential": Sequential,
    MLP: ResidualSequential,
    "DepthAttention": DepthAttention,
}


def loss(composer: Composer, nodes: Sequence[Tensor]) -> Tensor:
    """Something to run backward from."""
    composed: Tensor = composer(nodes)
    return composed.square().sum()


def main(args: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write JSON and a picture where asked."""
    parser = argparse.ArgumentParser(description="What each composer of KoRA costs.")
    parser.add_argument("--nodes", type=int, default=48)
    parser.add_argument("--d_comp", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--batch", type=int, default=64)
    add_options(parser, repeats=15)
    own = parser.parse_args(args)
    device = chosen_device(parser, own)
    if own.nodes < 1 or min(own.d_comp) < 1:
        parser.error(f"--nodes {own.nodes} --d_comp {own.d_comp}: expected 1 or more.")
    widths = {}
    for width in own.d_comp:
        torch.manual_seed(0)
        nodes = [
            torch.randn(own.batch, width, device=device, requires_grad=True)
            for _ in range(own.nodes)
        ]
        steps, counted = {}, {}
        for name, kind in COMPOSERS.items():
            composer = kind()
            composer.build(own.nodes, width)
            composer.to(device)
            gflop, mib = counted_step(composer, partial(loss, composer, nodes))
            numbers = sum(p.numel() for p in composer.parameters())
            counted[name] = {"numbers": numbers, "mflop": 1e3 * gflop, "kept_mib": mib}
            steps[name] = lambda composer=composer, nodes=nodes: loss(composer, nodes).backward()
        found = in_turn(steps, own.repeats, device)
        add_ratios(found, MLP)
        for name, one in found.items():
            one |= counted[name]
        widths[width] = found
        kind = next(key for key in reversed(found[MLP]) if " / " in key)
        rows = [
            [name, f"{one['numbers']:,}", f"{one['mflop']:.2f}", f"{one['kept_mib']:.2f}",
             shown(one[kind])]
            for name, one in found.items()
        ]  # fmt: skip
        print(f"\n{own.nodes} nodes, d_comp {width}, {own.batch} images, float32\n")
        print(table(["composer", "numbers", "MFLOP", "kept, MiB", kind], rows))
    print(f"\nMedians of {own.repeats} rounds (lowest to highest). {machine(device)}")
    last = widths[own.d_comp[-1]]
    write(
        own,
        "composers",
        {"d_comp_widths": {str(width): found for width, found in widths.items()}},
        partial(
            ratio_bars,
            ratios={name: one[kind] for name, one in last.items()},
            title=f"A step of a composer alone: {own.nodes} nodes, d_comp {own.d_comp[-1]}",
            axis=f"{kind} (median; whiskers: lowest, highest)",
        ),
        device=device,
    )


if __name__ == "__main__":
    main()
