"""What test and prediction of LoRA, DoRA and SSF cost, beside timm's model without any adapter.

Each predicts the same images in turn: timm's plain model with a classifier, then every strategy
with its weights merged, as `kora test` and `kora predict` run it, and as it is in training. The
merge itself, once a test, is measured too.

    python benchmarks/merged.py [--model vit_base_patch16_224] [--batch 8] [--device cpu|cuda]
        [--repeats 7] [--json FILE] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `tests` and `benchmarks`

import torch
from torch import Tensor, nn

from benchmarks.contenders import CLASSES, contenders
from benchmarks.measuring import (
    add_options,
    add_ratios,
    chosen_device,
    in_turn,
    machine,
    ratio_bars,
    seconds,
    shown,
    table,
    write,
)
from kora.backbone.vit import Backbone
from kora.tasks import ClassificationTask
from kora.tasks.merging import Merged
from tests.support.counted import counted_forward

BARE = "timm's model"
STRATEGIES = ("LoRA", "DoRA", "SSF")


class Bare(nn.Module):
    """timm's model with a classifier, behind the same preparation of images."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.model = backbone.plain_model(CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of (B, 3, H, W) images."""
        logits: Tensor = self.model(self.backbone.preprocess(images))
        return logits


class Prediction:
    """The logits of a module; merged for the time of the call, where that is asked."""

    def __init__(self, module: nn.Module, images: Tensor, *, merge: bool = False) -> None:
        self.module = module.to(images.device).eval()
        self.images = images
        self.merge = merge

    def prepare(self) -> Merged | None:
        """Merge; the caller puts it back."""
        task = self.module
        if not self.merge:
            return None
        assert isinstance(task, ClassificationTask)
        return Merged(task.backbone, task.adapter)

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        """(B, K)."""
        logits: Tensor = self.module(self.images)
        return logits


def main(args: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write JSON and a picture where asked."""
    parser = argparse.ArgumentParser(description="What a merged adapter costs.")
    parser.add_argument("--model", default="vit_base_patch16_224", help="a ViT of timm")
    parser.add_argument("--batch", type=int, default=8)
    add_options(parser, repeats=7)
    own = parser.parse_args(args)
    device = chosen_device(parser, own)
    torch.manual_seed(0)
    try:
        backbone = Backbone(own.model, weights="random").to(device)
    except ValueError as error:
        parser.error(f"--model: {error}")
    images = torch.randint(0, 256, (own.batch, 3, *backbone.size), dtype=torch.uint8).to(device)
    runs = {BARE: Prediction(Bare(backbone), images)}
    unmerged: dict[str, Tensor] = {}
    merge_seconds: dict[str, float] = {}
    for name in STRATEGIES:
        modules = [contenders(backbone, [name])[name] for _ in range(2)]
        modules[1].load_state_dict(modules[0].state_dict())
        _move(modules[0], modules[1])
        runs[name] = Prediction(modules[0], images)
        runs[f"{name}, merged"] = merged = Prediction(modules[1], images, merge=True)
        unmerged[name] = runs[name]()
        merge_seconds[name] = seconds(merged.prepare, device)  # stays merged
        torch.testing.assert_close(merged(), unmerged[name], rtol=1e-4, atol=1e-4)
    gflop = {name: counted_forward(run) for name, run in runs.items()}
    found = in_turn(runs, own.repeats, device)
    add_ratios(found, BARE)
    for name, one in found.items():
        one["gflop"] = gflop[name]
    kinds = [key for key in found[BARE] if " / " in key]
    rows = [
        [name, f"{one['gflop']:.2f}", *(shown(one[kind]) for kind in kinds)]
        for name, one in found.items()
    ]
    setting = f"{own.model}, {own.batch} images of {backbone.size[0]} x {backbone.size[1]}"
    each = ", ".join(f"{name} {spent:.2f} s" for name, spent in merge_seconds.items())
    print(
        f"\n{setting}, float32, medians of {own.repeats} rounds (lowest to highest)\n\n"
        f"{table(['prediction', 'GFLOP', *kinds], rows)}\n\n"
        f"Merging, once a test: {each}. {machine(device)}"
    )
    kind = kinds[-1]
    write(
        own,
        "merged",
        {"merge_seconds": merge_seconds, "predictions": found},
        partial(
            ratio_bars,
            ratios={name: one[kind] for name, one in found.items()},
            title=f"Prediction: {setting}, float32",
            axis=f"{kind} (median; whiskers: lowest, highest)",
        ),
        device=device,
    )


def _move(*modules: nn.Module) -> None:
    """Move all that trains a little, the same in each: an update of zero would prove nothing."""
    for module in modules:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.requires_grad:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter += 0.02 * noise.to(parameter.device)


if __name__ == "__main__":
    main()
