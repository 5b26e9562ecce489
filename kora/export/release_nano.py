"""Turn the newest pretraining run into the packaged weights of `vit_nano`, and write their card.

`make pretrain-nano` runs `kora fit --config configs/pretrain/vit_nano.yaml`, then
`python -m kora.export.release_nano runs/pretrain_vit_nano`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from kora.adapters.folder import ADAPTER_WEIGHTS
from kora.backbone.nano import WEIGHTS
from kora.runs.durable import write_atomically, write_text
from kora.runs.results import find_runs, read_results

__all__ = ["main"]

_CARD = """\
# vit_nano

**vit_nano is a small vision transformer that ships with the package, so that every command runs
without a download.** Use it to try things out and in tests, not for your images.

| what | value |
| --- | --- |
| architecture | timm's VisionTransformer: 64 pixels, patches of 8, width 128, 6 blocks, 4 heads |
| parameters | {parameters:,} (float16, {size_mib:.2f} MiB) |
| trained on | {train:,} rendered scenes of the style `studio` (datamodules/scenes), 12 classes |
| how | all weights from random, with labels: `{command}` |
| accuracy | {accuracy:.1%} on {test:,} other scenes of that style (chance {chance:.1%}), one seed |
| licence | Apache-2.0 |

It has seen no photograph, and no scene of the styles `paint` and `night`. `make pretrain-nano`
trains it and writes this page.
"""


def main() -> None:
    """Write `kora/backbone/vit_nano.safetensors` and `VIT_NANO.md`."""
    parser = argparse.ArgumentParser(prog="python -m kora.export.release_nano", description=__doc__)
    parser.add_argument("runs", type=Path, help="runs/pretrain_vit_nano, or one run in it")
    run = find_runs([parser.parse_args().runs])[-1]
    result = read_results(run)
    stored = load_file(run / "adapter" / ADAPTER_WEIGHTS)
    weights = {
        name.removeprefix("adapter."): tensor.to(torch.float16)
        for name, tensor in stored.items()
        if name.startswith("adapter.")
    }
    write_atomically(WEIGHTS, lambda path: save_file(weights, path))
    card = _CARD.format(
        parameters=sum(tensor.numel() for tensor in weights.values()),
        size_mib=WEIGHTS.stat().st_size / 2**20,
        train=result.protocol["sizes"]["train"],
        test=result.protocol["sizes"]["test"],
        command="kora fit --config configs/pretrain/vit_nano.yaml",
        accuracy=result.metrics["test/accuracy"],
        chance=result.baselines["chance"]["accuracy"],
    )
    write_text(WEIGHTS.with_name("VIT_NANO.md"), card)
    print(f"Wrote {WEIGHTS} and its card.")


if __name__ == "__main__":
    main()
