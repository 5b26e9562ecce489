"""What `kora fit` costs beside the computation: its steps against a bare loop of PyTorch.

A real `kora fit` trains on the synthetic data (run folder, metrics.csv, checkpoints and guards as
always; no W&B, no progress bar). After each of its steps the same batch is given to a bare step on
another copy of the same model (forward, backward, AdamW). What lies between two bare steps is a
step of `kora fit` with everything around it: loading, hooks, callbacks, schedule, logging. Steps
are summed over blocks of five, as every fifth is logged; ratios are taken within a block. The same
is then done with Lightning's Trainer alone (no logger, no checkpoint), which says how much of it is
the loop that `kora fit` runs in.

    python benchmarks/overhead.py [--batch 8] [--repeats 12] [--device cpu|cuda]
        [--adapter LoRA|KoRA] [--json FILE] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `tests` and `benchmarks`

import torch
import torch.nn.functional as F
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.measuring import (
    SPENT,
    add_options,
    add_ratios,
    chosen_device,
    machine,
    ratio_bars,
    shown,
    table,
    write,
)
from kora.adapters import KoRA, LoRA
from kora.backbone.vit import Backbone
from kora.tasks.callbacks import FlushedDenormals
from kora.tasks.optim import fuse_on_cpu
from kora.training.lightning_cli import KoraCLI
from kora.training.progress import without_noise
from tests.support.factory import built

BARE, FIT, ALONE = "bare loop", "kora fit", "Lightning alone"
CLASSES = 12
BLOCK = 5  # steps: trainer.log_every_n_steps
WARM = 2 * BLOCK  # steps that are not counted


class Clock:
    """Seconds of this machine and of this process, when the device is done."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self) -> dict[str, float]:
        """By kind."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return {"seconds": time.perf_counter(), "cpu seconds": time.process_time()}


def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
    """AdamW over what trains."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return fuse_on_cpu(torch.optim.AdamW(trained, lr=1e-3))


class InTurn(Callback):
    """Makes a bare step after each step of the trainer, and times both.

    Args:
        trainer: What to call the trainer's steps.
    """

    def __init__(self, bare: nn.Module, device: torch.device, trainer: str = FIT) -> None:
        self.bare = bare.to(device).train()
        self.optimizer = optimizer_of(bare)
        self.clock = Clock(device)
        self.name = trainer
        self.steps: dict[str, list[dict[str, float]]] = {BARE: [], trainer: []}
        self._since: dict[str, float] | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One step of each is behind us after this."""
        begun = self.clock()
        if self._since is not None:
            self._add(self.name, self._since, begun)
        loss = F.cross_entropy(self.bare(batch["image"]), batch["label"])
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        ended = self.clock()
        if self._since is not None:
            self._add(BARE, begun, ended)
        self._since = self.clock()

    def _add(self, name: str, begun: dict[str, float], ended: dict[str, float]) -> None:
        self.steps[name].append({kind: ended[kind] - begun[kind] for kind in SPENT})

    def blocks(self, kinds: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Seconds of each block of steps, by name and kind."""
        found: dict[str, dict[str, Any]] = {}
        for name, steps in self.steps.items():
            counted = steps[WARM:]
            firsts = range(0, len(counted) - BLOCK + 1, BLOCK)
            found[name] = {
                kind: [sum(step[kind] for step in counted[i : i + BLOCK]) for i in firsts]
                for kind in kinds
            }
        add_ratios(found, BARE)
        return found


class Alone(LightningModule):
    """The same model and optimiser with what Lightning needs, and the loss logged."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of a batch."""
        loss = F.cross_entropy(self.model(batch["image"]), batch["label"])
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over what trains."""
        return optimizer_of(self)


def trained_alone(in_turn: InTurn, model: nn.Module, batch: int, steps: int) -> None:
    """Train with Lightning's Trainer and nothing of kora around it, on random images."""
    batches = [
        {
            "image": torch.randint(0, 256, (batch, 3, 64, 64), dtype=torch.uint8),
            "label": torch.arange(batch) % CLASSES,
        }
        for _ in range(steps)
    ]
    off = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    accelerator = "gpu" if in_turn.clock.device.type == "cuda" else "cpu"
    with without_noise(), redirect_stdout(sys.stderr):
        trainer = Trainer(
            accelerator=accelerator,
            devices=1,
            max_epochs=1,
            callbacks=[FlushedDenormals(), in_turn],  # the numbers as in `kora fit`
            **off,
        )
        trainer.fit(Alone(model), DataLoader(batches, batch_size=None))


def fitted(in_turn: InTurn, args: Sequence[str]) -> None:
    """Run `kora fit ARGS` here, with one callback more."""

    class WithOneMore(KoraCLI):
        def instantiate_trainer(self, **kwargs: Any) -> Trainer:
            trainer = super().instantiate_trainer(**kwargs)
            callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
            callbacks.append(in_turn)
            return trainer

    with without_noise(), redirect_stdout(sys.stderr):
        WithOneMore(["fit", *args])


def _more(found: dict[str, dict[str, Any]], name: str, kind: str) -> float:
    """Milliseconds of a step beyond those of the bare step beside it, the median of all blocks."""
    pairs = zip(found[name][kind], found[BARE][kind], strict=True)
    return 1e3 * statistics.median(mine - theirs for mine, theirs in pairs) / BLOCK


def main(args: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write JSON and a picture where asked."""
    parser = argparse.ArgumentParser(description="What kora fit costs beside the computation.")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--adapter", choices=["LoRA", "KoRA"], default="LoRA")
    add_options(parser, repeats=12)
    own = parser.parse_args(args)
    device = chosen_device(parser, own)
    torch.manual_seed(0)
    adapter = {"LoRA": LoRA, "KoRA": KoRA}[own.adapter]
    backbone = Backbone("vit_nano", weights="random")
    bare, alone, beside_alone = (
        built(adapter(), backbone=copy.deepcopy(backbone), num_classes=CLASSES) for _ in range(3)
    )
    in_turn = InTurn(bare, device)
    steps = WARM + own.repeats * BLOCK + 1  # the first begins the clock
    with tempfile.TemporaryDirectory() as folder:
        fitted(
            in_turn,
            [
                f"--runs_dir={folder}",
                "--model=kora.tasks.ClassificationTask",
                "--model.backbone.name=vit_nano",
                "--model.backbone.weights=random",
                f"--model.adapter=kora.adapters.{own.adapter}",
                "--data=datamodules.Synthetic",
                f"--data.train_images={own.batch * steps}",
                "--data.val_fraction=0",
                "--data.test_images=24",
                f"--data.batch_size={own.batch}",
                "--trainer.max_epochs=1",
                "--trainer.enable_progress_bar=false",
                f"--trainer.accelerator={'gpu' if device.type == 'cuda' else 'cpu'}",
                "--trainer.devices=1",
                "--wandb.mode=disabled",
            ],
        )
    kinds = SPENT if device.type == "cpu" else SPENT[:1]
    found = in_turn.blocks(kinds)
    other = InTurn(beside_alone, device, ALONE)
    trained_alone(other, alone, own.batch, steps)
    beside = other.blocks(kinds)
    found[ALONE] = beside[ALONE]
    best = kinds[-1]
    step_ms = 1e3 * statistics.median(found[BARE][best]) / BLOCK
    more_ms, alone_ms = _more(found, FIT, best), _more(beside, ALONE, best)
    ratios = [f"{kind} / {BARE}" for kind in kinds]
    rows = [[name, *(shown(one[kind]) for kind in ratios)] for name, one in found.items()]
    setting = f"{own.adapter} on vit_nano, {own.batch} images of 64 x 64"
    print(
        f"\n{setting}, medians of {own.repeats} blocks of {BLOCK} steps (lowest to highest)\n\n"
        f"{table(['step', *ratios], rows)}\n\n"
        f"A bare step takes {step_ms:.0f} ms ({best}), kora fit {more_ms:+.2f} ms more, and "
        f"Lightning alone {alone_ms:+.2f} ms. {machine(device)}"
    )
    write(
        own,
        "overhead",
        {"steps": found, "bare_step_ms": step_ms, "more_ms": more_ms, "alone_ms": alone_ms},
        partial(
            ratio_bars,
            ratios={name: one[ratios[-1]] for name, one in found.items()},
            title=f"One step: {setting}",
            axis=f"{ratios[-1]} (median; whiskers: lowest, highest)",
        ),
        device=device,
    )


if __name__ == "__main__":
    main()
