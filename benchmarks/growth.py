"""How a training step grows: with images, sites, rank, width of the composition and image size.

One of the five is changed at a time, the rest stays at 4 images, all blocks, rank 8, width 8 and
images of 6 x 6 patches. At every point LoRA, KoRA and KoRA as a side network make steps in turn
with the forward pass of the frozen backbone on the same images, and time is told as the ratio to
that: a line that stays level grows as the backbone itself does. Kept bytes and operations are
counted. The slope of a line is that of its logarithms: 0 is level, 1 is linear, 2 is a square.

    python benchmarks/growth.py [--model vit_tiny_patch16_224] [--device cpu|cuda] [--points 4]
        [--repeats 3] [--json FILE] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `tests` and `benchmarks`

import torch
from torch import nn

from benchmarks.contenders import CLASSES, FORWARD, Frozen, shared
from benchmarks.measuring import (
    SPENT,
    add_options,
    add_ratios,
    chosen_device,
    in_turn,
    machine,
    slope,
    table,
    write,
)
from benchmarks.training_step import Step
from kora.adapters import KoRA, LoRA, PaperForm, Strategy
from kora.backbone.vit import Backbone
from kora.reports.canvas import BLUE, GREEN, ORANGE, new_figure, save
from tests.support.factory import built

BASE = {"images": 4, "sites": 0, "rank": 8, "d_comp": 8, "patches a side": 6}  # 0: all blocks
VALUES = {
    "images": (1, 2, 4, 8),
    "sites": (1, 2, 3, 4),  # quarters of the blocks; told as the number of sites
    "rank": (2, 8, 32, 128),
    "d_comp": (4, 16, 64, 256),
    "patches a side": (4, 6, 8, 12),
}
SITES_A_BLOCK = 4
LINES = {"LoRA": BLUE, "KoRA": ORANGE, "KoRA-side": GREEN}
DASHES = {"LoRA": "o-", "KoRA": "s--", "KoRA-side": "^-"}  # two of them often coincide

Lines = dict[str, dict[str, dict[str, list[float]]]]  # by what grows, step, and what is measured


class Point:
    """One setting of the five."""

    def __init__(self, setting: Mapping[str, int], depth: int, points: int) -> None:
        self.images = setting["images"]
        self.rank, self.d_comp = setting["rank"], setting["d_comp"]
        self.patches = setting["patches a side"]
        blocks = depth * (setting["sites"] or points) // points
        self.blocks = list(range(max(1, blocks)))  # the first, so that a gradient passes all

    @property
    def sites(self) -> int:
        """How many layers are adapted."""
        return SITES_A_BLOCK * len(self.blocks)

    def modules(self, backbone: Backbone) -> dict[str, nn.Module]:
        """The contenders."""
        strategies: dict[str, Strategy] = {
            "LoRA": LoRA(self.rank, blocks=self.blocks),
            "KoRA": KoRA(PaperForm(self.rank, blocks=self.blocks), self.d_comp),
            "KoRA-side": KoRA(PaperForm(self.rank, inject=False, blocks=self.blocks), self.d_comp),
        }
        adapted = {
            name: built(strategy, backbone=shared(backbone), num_classes=CLASSES)
            for name, strategy in strategies.items()
        }
        return {**adapted, FORWARD: Frozen(shared(backbone))}


def measured(point: Point, backbone: Backbone, repeats: int, device: torch.device) -> Any:
    """Counts and ratios of the steps at one point, by name."""
    shape = (point.images, 3, *backbone.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8).to(device)
    steps = {
        name: Step(module, images, bfloat16=False, trains=name != FORWARD)
        for name, module in point.modules(backbone).items()
    }
    counts = {name: steps[name].counted() for name in LINES}
    found = in_turn(steps, repeats, device)
    add_ratios(found, FORWARD)
    for name, (gflop, mib) in counts.items():
        found[name] |= {"gflop": gflop, "kept_mib": mib}
    return found


def lines(model: str, *, points: int, repeats: int, device: torch.device) -> Lines:
    """Every line: its sizes and values."""
    patch = Backbone(model, weights="random").model.patch_embed.patch_size[0]
    kind = f"{SPENT[device.type == 'cpu']} / {FORWARD}"
    backbones: dict[int, Backbone] = {}
    known: dict[str, Any] = {}
    found: Lines = {}
    for grows, values in VALUES.items():
        found[grows] = {
            name: {"size": [], "time": [], "kept_mib": [], "gflop": []} for name in LINES
        }
        for value in values[:points]:
            patches = value if grows == "patches a side" else BASE["patches a side"]
            if patches not in backbones:
                torch.manual_seed(0)
                made = Backbone(model, weights="random", image_size=patch * patches)
                backbones[patches] = made.to(device)
            backbone = backbones[patches]
            point = Point({**BASE, grows: value}, backbone.depth, points)
            print(f"{grows} {point.sites if grows == 'sites' else value}", file=sys.stderr)
            key = str(vars(point))
            if key not in known:  # most lines pass through BASE
                known[key] = measured(point, backbone, repeats, device)
            at = known[key]
            for name, line in found[grows].items():
                line["size"].append(point.sites if grows == "sites" else value)
                line["time"].append(at[name][kind][0])
                line["kept_mib"].append(at[name]["kept_mib"])
                line["gflop"].append(at[name]["gflop"])
    return found


def slopes(found: Lines) -> dict[str, dict[str, dict[str, float]]]:
    """The power with which each line grows."""
    return {
        grows: {
            name: {what: slope(line["size"], line[what]) for what in ("time", "kept_mib", "gflop")}
            for name, line in steps.items()
        }
        for grows, steps in found.items()
    }


def rendered(found: Lines) -> str:
    """A row for each line."""
    powers = slopes(found)
    columns = ["what grows", "from, to", "step", "time / frozen forward", "power"]
    columns += ["kept, MiB", "power", "GFLOP, power"]
    rows = []
    for grows, steps in found.items():
        for name, line in steps.items():
            power = powers[grows][name]
            rows.append(
                [
                    grows,
                    f"{line['size'][0]}, {line['size'][-1]}",
                    name,
                    f"{line['time'][0]:.2f}, {line['time'][-1]:.2f}",
                    f"{power['time']:+.2f}",
                    f"{line['kept_mib'][0]:.2f}, {line['kept_mib'][-1]:.2f}",
                    f"{power['kept_mib']:+.2f}",
                    f"{power['gflop']:+.2f}",
                ]
            )
    return table(columns, rows)


def drawn(path: Path, found: Lines, *, title: str) -> Path:
    """Above time, below kept bytes; a column for each of the five."""
    powers = slopes(found)
    figure, axes = new_figure(len(found), rows=2, size=(3.1 * len(found), 6), title=title)
    for column, (grows, steps) in enumerate(found.items()):
        for row, (what, label) in enumerate(
            [("time", "time / frozen forward"), ("kept_mib", "kept, MiB")]
        ):
            panel = axes[row * len(found) + column]
            for name, line in steps.items():
                power = powers[grows][name][what]
                panel.plot(
                    line["size"], line[what], DASHES[name], color=LINES[name], markersize=3,
                    linewidth=1.4, label=f"{name}, power {power:+.2f}",
                )  # fmt: skip
            panel.set_xscale("log", base=2)
            panel.set_xticks(line["size"], [str(size) for size in line["size"]], minor=False)
            panel.minorticks_off()
            if what == "kept_mib":
                panel.set_yscale("log")
                panel.set_ylim(top=panel.get_ylim()[1] * 12)
            else:
                panel.set_ylim(0, 1.6 * max(max(line["time"]) for line in steps.values()))
            panel.set_xlabel(grows, fontsize=9)
            panel.tick_params(labelsize=8)
            panel.grid(alpha=0.25)
            panel.legend(fontsize=7.5, loc="upper left", frameon=False)
            if column == 0:
                panel.set_ylabel(label, fontsize=9)
    return save(figure, path)


def main(args: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write JSON and a picture where asked."""
    parser = argparse.ArgumentParser(description="How a training step grows.")
    parser.add_argument("--model", default="vit_tiny_patch16_224", help="a ViT of timm")
    parser.add_argument("--points", type=int, default=4, choices=(2, 3, 4), help="of each line")
    add_options(parser, repeats=3)
    own = parser.parse_args(args)
    device = chosen_device(parser, own)
    try:
        found = lines(own.model, points=own.points, repeats=own.repeats, device=device)
    except ValueError as error:
        parser.error(f"--model: {error}")
    kind = SPENT[device.type == "cpu"]
    print(
        f"\n{own.model}, float32, time in {kind}, medians of {own.repeats} rounds at each point\n\n"
        f"{rendered(found)}\n\n{machine(device)}"
    )
    write(
        own,
        "growth",
        {"lines": found, "slopes": slopes(found)},
        partial(drawn, found=found, title=f"One training step of {own.model}, float32 ({kind})"),
        device=device,
    )


if __name__ == "__main__":
    main()
