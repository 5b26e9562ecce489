"""What the backward pass of attention costs on a CPU in bfloat16: torch's own and plain products.

Both in turn, on the tokens of images of several sizes, and within a step of LoRA on ViT-S at 70
pixels (kora/attention_backward.py).

    python benchmarks/attention_backward.py [--batch 20] [--tokens 26 65 101 145 197]
        [--repeats 12] [--json FILE] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `tests` and `benchmarks`

import torch
import torch.nn.functional as F

from benchmarks.contenders import contenders
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
from benchmarks.training_step import Step
from kora.attention_backward import plain_attention_backward
from kora.backbones import Backbone
from kora.denormals import flushed

MODEL, PIXELS, HEADS, WIDTH = "vit_small_patch14_dinov2", 70, 6, 64
STEP = f"a step of LoRA at {PIXELS} pixels"
OWN, PLAIN = "torch's own", "plain products"
KIND = "cpu seconds"


def backward(batch: int, tokens: int) -> Callable[[], object]:
    """The gradients of query, key and value, (batch, HEADS, tokens, WIDTH)."""
    inputs = [
        torch.randn(batch, tokens, HEADS, WIDTH).bfloat16().transpose(1, 2).requires_grad_()
        for _ in range(3)
    ]
    output = F.scaled_dot_product_attention(*inputs)
    return partial(torch.autograd.grad, output, inputs, torch.randn_like(output), retain_graph=True)


def with_plain_products(run: Callable[[], object]) -> None:
    """Run it as within a fit."""
    with plain_attention_backward(torch.device("cpu")):
        run()


def main(args: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write JSON and a picture where asked."""
    parser = argparse.ArgumentParser(description="What attention's backward pass costs on a CPU.")
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--tokens", type=int, nargs="+", default=[26, 65, 101, 145, 197])
    add_options(parser, repeats=12, devices=("cpu",))
    own = parser.parse_args(args)
    if min(own.tokens) < 1:
        parser.error(f"--tokens {own.tokens}: expected 1 or more of each.")
    device = chosen_device(parser, own)
    torch.manual_seed(0)
    backbone = Backbone(MODEL, weights="random", image_size=PIXELS)
    images = torch.randint(0, 256, (own.batch, 3, PIXELS, PIXELS), dtype=torch.uint8)
    lora = contenders(backbone, ["LoRA"])["LoRA"]
    runs: dict[str, Callable[[], object]] = {
        f"{tokens} tokens": backward(own.batch, tokens) for tokens in own.tokens
    }
    runs[STEP] = Step(lora, images, bfloat16=True, trains=True)
    found = {}
    for name, run in runs.items():
        both = {OWN: run, PLAIN: partial(with_plain_products, run)}
        found[name] = in_turn(both, own.repeats, device, within=flushed)
        add_ratios(found[name], OWN)
    ratio = f"{KIND} / {OWN}"
    rows = [
        [
            name,
            *(f"{1000 * sorted(one[which][KIND])[own.repeats // 2]:.1f}" for which in (OWN, PLAIN)),
            shown(one[PLAIN][ratio]),
        ]
        for name, one in found.items()
    ]
    print(
        f"\n{own.batch} images, {HEADS} heads of {WIDTH}, bfloat16, medians of {own.repeats} "
        "rounds (lowest to highest)\n\n"
        f"{table(['of', f'{OWN}, cpu ms', f'{PLAIN}, cpu ms', ratio], rows)}\n\n{machine(device)}"
    )
    write(
        own,
        "attention_backward",
        found,
        partial(
            ratio_bars,
            ratios={name: one[PLAIN][ratio] for name, one in found.items()},
            title=f"Backward of attention, {own.batch} images, bfloat16",
            axis=f"{ratio} (median; whiskers: lowest, highest)",
        ),
        device=device,
    )


if __name__ == "__main__":
    main()
