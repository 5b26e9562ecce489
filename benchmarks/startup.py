"""How soon the command answers: help, lists, mistakes, and what it imports before a fit begins.

Each is a process of its own, from its start to its end, all in turn; beside them `import torch`
alone, the imports of a fit without kora, and the `fit --help` of a command of one line on
LightningCLI.

With --first_prediction, also a process that loads a run and predicts one image, beside one that
does it with timm alone.

    python benchmarks/startup.py [--first_prediction] [--repeats 5] [--json FILE] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `benchmarks`

from benchmarks.measuring import (
    add_options,
    add_ratios,
    chosen_device,
    machine,
    ratio_bars,
    shown,
    spread,
    table,
    write,
)

REPOSITORY = Path(__file__).resolve().parents[1]
KORA = (sys.executable, "-m", "kora")
STOCK = "from lightning.pytorch.cli import LightningCLI; LightningCLI()"
TORCH = "import torch"
LIBRARIES = "import torch, timm, lightning.pytorch"
COMMANDS = {
    "kora --help": (*KORA, "--help"),
    "kora --version": (*KORA, "--version"),
    "kora list": (*KORA, "list"),
    "kora grid --help": (*KORA, "grid", "--help"),
    "kora predict --help": (*KORA, "predict", "--help"),
    "kora fit --model.head_lrr": (*KORA, "fit", "--config", "quickstart", "--model.head_lrr=1"),
    "kora inspect nowhere": (*KORA, "inspect", "nowhere"),
    "kora grid --dry_run": (*KORA, "grid", "--config", "grids/quickstart_matched", "--dry_run"),
    "kora fit --help all": (*KORA, "fit", "--help", "all"),
    "LightningCLI fit --help": (sys.executable, "-c", STOCK, "fit", "--help"),
    TORCH: (sys.executable, "-c", TORCH),
    LIBRARIES: (sys.executable, "-c", LIBRARIES),
    "the same after import kora": (sys.executable, "-c", f"import kora; {LIBRARIES}"),
}
#: What a mistake exits with.
CODES = {"kora fit --model.head_lrr": 2, "kora inspect nowhere": 1}


#: A picture's classes by a run, and its features by timm with the same weights.
OURS = "import kora; kora.load_adapter('{run}').predict('{image}')"
PLAIN = """
import numpy as np, timm, torch
from PIL import Image
from safetensors.torch import load_file
model = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
model.load_state_dict(load_file("{weights}"), strict=False)
image = Image.open("{image}").convert("RGB").resize((224, 224))
with torch.no_grad():
    model(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255)
"""


def first_predictions(folder: Path) -> dict[str, tuple[str, ...]]:
    """Train a linear probe for a step; the commands that predict with it, and with timm alone."""
    import numpy as np
    import timm
    from PIL import Image
    from safetensors.torch import save_file

    weights, image = folder / "vit.safetensors", folder / "image.png"
    save_file(timm.create_model("vit_tiny_patch16_224").state_dict(), weights)
    Image.fromarray(np.zeros((300, 400, 3), dtype=np.uint8)).save(image)
    probe = REPOSITORY / "configs/adapters/linear_probe.yaml"
    options = {
        "source": "null", "runs_dir": folder / "runs",
        "model.backbone.name": "vit_tiny_patch16_224",
        "model.backbone.weights": weights, "model.backbone.image_size": 224,
        "trainer.max_steps": 1, "trainer.limit_val_batches": 1, "leave_out_test": "true",
    }  # fmt: skip
    words = [f"--{key}={value}" for key, value in options.items()]
    spent((*KORA, "fit", "--config", "quickstart", "--config", str(probe), *words))
    (run,) = folder.glob("runs/*/*/*/version_0")
    filled = [code.format(run=run, image=image, weights=weights) for code in (OURS, PLAIN)]
    names = ("first prediction of kora.load_adapter", "the same with timm alone")
    return {n: (sys.executable, "-c", code) for n, code in zip(names, filled, strict=True)}


def spent(command: Sequence[str], code: int = 0, *, folder: Path = REPOSITORY) -> dict[str, float]:
    """Wall and processor seconds of a command in a folder, which ends with this code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "WANDB_MODE": "disabled"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - begun
    if done.returncode != code:
        raise RuntimeError(f"{' '.join(command)} ends with {done.returncode}: {done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu seconds": cpu}


def main(args: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write JSON and a picture where asked."""
    parser = argparse.ArgumentParser(description="How soon the command answers.")
    add_options(parser, repeats=5, devices=("cpu",))
    parser.add_argument("--first_prediction", action="store_true")
    own = parser.parse_args(args)
    chosen_device(parser, own)
    with tempfile.TemporaryDirectory() as folder:
        more = first_predictions(Path(folder)) if own.first_prediction else {}
        commands = COMMANDS | more
        found: dict[str, dict[str, Any]] = {n: {"seconds": [], "cpu seconds": []} for n in commands}
        for repeat in range(own.repeats + 1):  # the first fills the page cache
            for name, command in commands.items():
                for kind, number in spent(command, CODES.get(name, 0)).items():
                    if repeat:
                        found[name][kind].append(number)
            print(f"\rround {repeat} of {own.repeats}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    add_ratios(found, TORCH)
    columns = ["command", "seconds", "cpu seconds", f"cpu seconds / {TORCH}"]
    rows = [
        [
            f"`{name}`",
            *(shown(spread(one[kind])) for kind in ("seconds", "cpu seconds")),
            shown(one[columns[-1]]),
        ]
        for name, one in found.items()
    ]
    print(f"\nMedians of {own.repeats} rounds (lowest to highest)\n\n{table(columns, rows)}\n")
    print(machine())
    write(
        own,
        "startup",
        {"commands": found},
        partial(
            ratio_bars,
            ratios={name: spread(one["seconds"]) for name, one in found.items()},
            title="From the start of a process to its end",
            axis="seconds (median; whiskers: lowest, highest)",
        ),
    )


if __name__ == "__main__":
    main()
