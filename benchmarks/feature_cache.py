"""What the feature cache gains: an epoch of LoRA, and epochs on images and on kept inputs.

Every contender trains with Lightning's Trainer on the same rendered scenes at the size of the
backbone, in the same order, on copies of one backbone with random weights. In every round each
trains in turn, from its start; its first epoch is not counted, and the ratio to LoRA is taken
within the round. The cache lies in a temporary folder and is filled in the first round.

    python benchmarks/feature_cache.py [--model vit_small_patch16_224] [--images 96] [--batch 16]
        [--epochs 5] [--device cpu|cuda] [--repeats 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import copy
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `benchmarks`

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback

from benchmarks.measuring import machine, table, write
from datamodules import Synthetic
from kora.adapters import KoRA, LinearProbe, LoRA, PaperForm, Strategy
from kora.backbone.vit import Backbone
from kora.tasks import ClassificationTask

IMAGES = "images"
BASE = ("LoRA", IMAGES)


@dataclass(frozen=True)
class Contender:
    """A strategy, and what it trains on: `images`, or a cache of this type."""

    name: str
    make: Callable[[], Strategy]
    reads: str


def side() -> Strategy:
    """KoRA's nodes beside the backbone."""
    return KoRA(PaperForm(8, inject=False), 8)


def late() -> Strategy:
    """LoRA in the last two blocks: those before are computed once."""
    return LoRA(8, blocks=[-2, -1])


CONTENDERS = [
    Contender("LoRA", lambda: LoRA(8), IMAGES),
    Contender("LoRA, last 2 blocks", late, IMAGES),
    Contender("LoRA, last 2 blocks", late, "float32"),
    Contender("linear probe", LinearProbe, IMAGES),
    Contender("linear probe", LinearProbe, "float32"),
    Contender("KoRA-side", side, IMAGES),
    Contender("KoRA-side", side, "float32"),
    Contender("KoRA-side", side, "bfloat16"),
]


class Epochs(Callback):
    """Seconds of every epoch, and every loss."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self._begun = 0.0

    def on_train_epoch_start(self, *args: Any) -> None:
        self._begun = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *args: Any) -> None:
        self.losses.append(float(outputs["loss"]))  # which also waits for the device

    def on_train_epoch_end(self, *args: Any) -> None:
        self.seconds.append(time.perf_counter() - self._begun)


def trained(contender: Contender, backbone: Backbone, folder: str, own: Any) -> tuple[Epochs, Any]:
    """Train it; its epochs, and what it says of its cache."""
    torch.manual_seed(0)
    kept = contender.reads != IMAGES
    task = ClassificationTask(
        copy.deepcopy(backbone),
        contender.make(),
        schedule="constant",  # the same learning rates, however many epochs
        warmup_fraction=0.0,
        feature_cache=kept,
        feature_cache_dtype=contender.reads if kept else "float32",  # type: ignore[arg-type]
        feature_cache_folder=folder,
    )
    data = Synthetic(
        image_size=backbone.size[0], train_images=own.images, test_images=12, val_images=0,
        batch_size=own.batch, seed=0,
    )  # fmt: skip
    epochs = Epochs()
    trainer = Trainer(
        accelerator="gpu" if own.device == "cuda" else "cpu", devices=1, callbacks=[epochs],
        max_epochs=own.epochs if kept else 2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(task, datamodule=data)
    return epochs, task.feature_cache.record()


def measured(backbone: Backbone, own: Any) -> list[dict[str, Any]]:
    """A record of each contender."""
    found: list[dict[str, Any]] = [
        {"name": c.name, "reads": c.reads, "epoch_seconds": [], "lora / this": []}
        for c in CONTENDERS
    ]
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(own.repeats):
            base, losses = 0.0, {}
            for contender, one in zip(CONTENDERS, found, strict=True):
                epochs, cache = trained(contender, backbone, folder, own)
                seconds = statistics.median(epochs.seconds[1:])
                if (contender.name, contender.reads) == BASE:
                    base = seconds
                one["epoch_seconds"].append(seconds)
                one["lora / this"].append(base / seconds)
                if contender.reads == IMAGES:
                    losses[contender.name] = torch.tensor(epochs.losses)
                    continue
                theirs = losses[contender.name]
                mine = torch.tensor(epochs.losses[: len(theirs)])
                one["largest loss difference"] = float((mine - theirs).abs().max())
                one["bytes_an_image"] = cache["bytes_an_image"]
                if repeat == 0:
                    one["fill_seconds"] = cache["seconds"]
            print(f"round {repeat + 1} of {own.repeats}", file=sys.stderr, flush=True)
    return found


def rendered(found: list[dict[str, Any]], images: int) -> str:
    """Rows in Markdown."""
    columns = [
        "strategy", "reads", "seconds an epoch", "images/s", "times as fast as LoRA",
        "KiB an image", "filled in, s", "largest difference of a loss",
    ]  # fmt: skip
    rows = []
    for one in found:
        seconds, ratios = one["epoch_seconds"], one["lora / this"]
        middle = statistics.median(seconds)
        row = [one["name"], one["reads"], f"{middle:.3g}", f"{images / middle:.4g}"]
        spread = f" ({min(ratios):.3g} to {max(ratios):.3g})" if len(ratios) > 1 else ""
        row.append(f"{statistics.median(ratios):.3g}{spread}")
        if one["reads"] == IMAGES:
            row += ["–"] * 3
        else:
            row += [f"{one['bytes_an_image'] / 1024:.4g}", f"{one['fill_seconds']:.2f}"]
            row.append(f"{one['largest loss difference']:.1e}")
        rows.append(row)
    return table(columns, rows)


def main(args: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description="What the feature cache gains.")
    parser.add_argument("--model", default="vit_small_patch16_224", help="a ViT of timm")
    parser.add_argument("--images", type=int, default=96, help="training images, 12 or more")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=5, help="on the cache; on images always 2")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    own = parser.parse_args(args)
    if own.images < 12 or own.batch < 1 or own.epochs < 2 or own.repeats < 1:
        parser.error(
            f"--images {own.images} --batch {own.batch} --epochs {own.epochs} --repeats "
            f"{own.repeats}: expected 12, 1, 2 and 1 or more."
        )
    if own.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here. Use --device cpu.")
    torch.manual_seed(0)
    try:
        backbone = Backbone(own.model, weights="random")
    except ValueError as error:
        parser.error(f"--model: {error}")
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found = measured(backbone, own)
    side_px = backbone.size[0]
    print(
        f"\n{own.model}, {own.images} images of {side_px} x {side_px} in batches of {own.batch}, "
        f"medians of {own.repeats} rounds (lowest to highest)\n"
    )
    print(rendered(found, own.images))
    print(f"\n{machine(torch.device(own.device))}")
    write(own, "feature_cache", {"contenders": found}, device=torch.device(own.device))


if __name__ == "__main__":
    main()
