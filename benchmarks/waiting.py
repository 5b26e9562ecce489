"""How the seconds that a user waits for grow: of a search, a grid and `kora adapt`.

Each is a command, from its start to its last line, with features cached:

* search: trials of `kora tune` of one strategy on the quickstart, five epochs each.
* grid: runs of `kora grid`, linear probes on the quickstart, five epochs each; with and without
  their pictures.
* batch: the same with 60 epochs each, one by one and as one batched fit.
* adapt: pictures of `kora adapt` with the embedded backbone.

One is no command: together, fits of a head on cached features as in a search, trained at once on
240 random images of 12 classes, five epochs, in batches of 12.

    python benchmarks/waiting.py [--only search grid batch adapt together] [--repeats 3]
        [--json FILE] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `benchmarks`

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor

from benchmarks.measuring import (
    add_options,
    chosen_device,
    machine,
    shown,
    spread,
    table,
    write,
)
from benchmarks.startup import KORA, spent
from datamodules import Synthetic
from kora.adaptation.candidates import Candidate
from kora.adaptation.features import Member, SharedPass
from kora.backbone.vit import Backbone
from kora.reports.canvas import BLUE, GREEN, ORANGE, new_figure, save
from kora.runs.results import find_runs, read_results
from kora.training.batched_fit import Setting, fit_together

GROWS = {
    "search": "trials of a search", "grid": "runs of a grid", "adapt": "pictures",
    "batch": "runs of 60 epochs", "together": "fits at once",
}  # fmt: skip
SIZES = {
    "search": (1, 8, 64), "grid": (2, 4, 8), "adapt": (120, 240, 480), "together": (1, 8, 64),
    "batch": (2, 8, 32),
}  # fmt: skip
SEARCHED = ("linear_probe", "multi_layer_probe", "kora_side")
SETTINGS = {"source": None, "trainer.max_epochs": 5, "trainer.precision": "32-true"}

Line = list[list[float]]  # median, lowest and highest seconds at each size


def line(call: Callable[[int, int], Sequence[str]], folder: Path, what: str, repeats: int) -> Line:
    """Seconds of the command at each size; a first call fills the caches of all seeds."""
    sizes = SIZES[what]

    def took(size: int, number: int) -> float:
        return spent((*KORA, *call(size, number)), folder=folder)["seconds"]

    took(sizes[-1] if what in ("grid", "batch") else sizes[0], 0)
    return [spread([took(size, n) for n in range(1, repeats + 1)]) for size in sizes]


def searches(folder: Path, repeats: int) -> dict[str, Line]:
    """`kora tune` with more and more trials, by strategy."""

    def call(strategy: str, trials: int, number: int) -> tuple[str, ...]:
        name = f"{strategy}_{trials}_{number}"
        search = {
            "base": "quickstart", "vary": {"config": [f"configs/adapters/{strategy}.yaml"]},
            "seeds": [0], "set": {**SETTINGS, "experiment": name},
            "tune": {
                "trials": trials, "sampler": "random",
                "space": {"model.head_lr": {"low": 1e-4, "high": 1e-2, "log": True}},
            },
        }  # fmt: skip
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(search))
        return "tune", "--config", f"{name}.yaml"

    return {one: line(partial(call, one), folder, "search", repeats) for one in SEARCHED}


def grids(folder: Path, repeats: int) -> dict[str, Line]:
    """`kora grid` with more and more seeds, with and without the pictures of each run."""
    return {
        name: line(partial(_grid, folder, {"pictures": pictures}, ()), folder, "grid", repeats)
        for name, pictures in (("kora grid", True), ("with pictures=false", False))
    }


def batches(folder: Path, repeats: int) -> dict[str, Line]:
    """`kora grid` with more and more seeds of long fits, one by one and together."""
    more = {"pictures": False, "trainer.max_epochs": SETTINGS["trainer.max_epochs"] * 12}
    return {
        name: line(partial(_grid, folder, more, words), folder, "batch", repeats)
        for name, words in (("kora grid", ()), ("with --together", ("--together",)))
    }


def _grid(
    folder: Path, more: Mapping[str, Any], words: Sequence[str], runs: int, number: int
) -> tuple[str, ...]:
    """The command for a new grid of linear probes."""
    name = f"grid_{len(list(folder.glob('grid_*.yaml')))}_{runs}_{number}"
    grid = {
        "base": "quickstart", "vary": {"config": ["configs/adapters/linear_probe.yaml"]},
        "seeds": list(range(runs)), "set": {**SETTINGS, "experiment": name, **more},
    }  # fmt: skip
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(grid))
    return "grid", "--config", f"{name}.yaml", *words


def adapts(folder: Path, repeats: int) -> dict[str, Line]:
    """`kora adapt` with more and more pictures."""
    most = max(SIZES["adapt"])
    data = Synthetic(image_size=64, train_images=most, test_images=12, val_fraction=0)
    pictures = data.read("train", np.arange(most))["image"].numpy()

    def call(count: int, number: int) -> tuple[str, ...]:
        root = folder / f"pictures_{count}_{number}"
        for at in range(count):
            file = root / f"class_{at % 12:02d}" / f"{at:04d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pictures[at].transpose(1, 2, 0)).save(file)
        return "adapt", root.name, "--backbone", "vit_nano"

    return {"kora adapt": line(call, folder, "adapt", repeats)}


def together(folder: Path, repeats: int) -> dict[str, Line]:
    """Fits of one head with more and more settings, by strategy."""
    candidates = [Candidate(name, (f"adapters/{name}",), "") for name in SEARCHED]
    shared = SharedPass(Backbone("vit_nano"), candidates, 12)
    labels = torch.arange(240) % 12

    def took(member: Member, inputs: Mapping[str, Tensor], fits: int) -> float:
        settings = [Setting(1e-4 * number, 1e-4 * number) for number in range(1, fits + 1)]
        begun = time.perf_counter()
        fit_together(member.task, inputs, labels, settings, epochs=5, batch_size=12, seed=0)
        return time.perf_counter() - begun

    found = {}
    for member in shared.members:
        inputs = shared.inputs_of(member, torch.randn(240, shared.width))
        took(member, inputs, 1)
        found[member.candidate.name] = [
            spread([took(member, inputs, size) for _ in range(repeats)])
            for size in SIZES["together"]
        ]
    return found


MEASURED = {
    "search": searches, "grid": grids, "batch": batches, "adapt": adapts, "together": together,
}  # fmt: skip


def rendered(what: str, lines: dict[str, Line]) -> str:
    """A table with the seconds at each size, and of one more."""
    sizes = SIZES[what]
    rows = [
        [name, *map(shown, one), f"{(one[-1][0] - one[0][0]) / (sizes[-1] - sizes[0]):.2f}"]
        for name, one in lines.items()
    ]
    return table([GROWS[what], *map(str, sizes), "one more"], rows)


def drawn(path: Path, found: dict[str, dict[str, Line]]) -> Path:
    """A panel for each command: seconds against what grows."""
    figure, axes = new_figure(len(found), size=(4.2 * len(found), 3.4))
    for axis, (what, lines) in zip(axes, found.items(), strict=True):
        for (name, one), colour in zip(lines.items(), (BLUE, ORANGE, GREEN), strict=False):
            axis.plot(SIZES[what], [three[0] for three in one], "o-", color=colour, label=name)
        axis.set(xlabel=GROWS[what], ylabel="seconds", ylim=(0, None))
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize=8)
    return save(figure, path)


def main(args: Sequence[str] | None = None) -> None:
    """Measure, print tables, and write JSON and a picture where asked."""
    parser = argparse.ArgumentParser(description="How the seconds that a user waits for grow.")
    add_options(parser, repeats=3, devices=("cpu",))
    parser.add_argument("--only", nargs="+", choices=GROWS, default=list(GROWS))
    own = parser.parse_args(args)
    chosen_device(parser, own)
    found: dict[str, dict[str, Line]] = {}
    more: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for what in own.only:
            folder = Path(temporary, what)
            folder.mkdir()
            found[what] = MEASURED[what](folder, own.repeats)
            print(f"\nSeconds against {GROWS[what]}\n\n{rendered(what, found[what])}")
            if what == "grid":
                runs = find_runs([folder / "runs"])
                fit_s = statistics.median(read_results(run).seconds["fit"] for run in runs)
                more["fit_seconds"] = fit_s
                print(f"\nThe fit of a run takes {fit_s:.2f} s.")
    print(f"\n{machine()}")
    write(own, "waiting", {"lines": found, **more}, partial(drawn, found=found))


if __name__ == "__main__":
    main()
