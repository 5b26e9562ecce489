"""What waits at the start of a process is where it was when somebody asks for it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

WAITS = (
    *("timm", "torchvision"),
    *("transformers", "scipy.signal", "matplotlib", "torch._dynamo", "sympy"),
    *("torchmetrics.text", "torchmetrics.functional.text.bert"),
)


def printed(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def started() -> dict[str, Any]:
    """What is there in a process that can read configs of fits, and then in one that builds."""
    code = f"""
import json, sys, kora, lightning.pytorch
import kora.training.lightning_cli, kora.tasks, datamodules
found = {{"there": [m for m in {WAITS} if m in sys.modules], "wandb": "wandb" in sys.modules}}
import timm, torchvision
found["finders"] = [f for f in sys.meta_path if type(f).__module__ == "kora.start_up"]
from timm.utils.summary import wandb as named
import wandb
found["named"] = [named is wandb, named.log is wandb.log, named.run, wandb.sdk.__name__]
print(json.dumps(found))
"""
    found: dict[str, Any] = json.loads(printed(code))
    return found


def test_a_fit_starts_without_models_metrics_of_text_plots_and_the_compiler(
    started: dict[str, Any],
) -> None:
    assert started["there"] == []


def test_a_fit_starts_without_wandb(started: dict[str, Any]) -> None:
    assert started["wandb"] is False


def test_what_timm_names_wandb_answers_as_wandb(started: dict[str, Any]) -> None:
    assert started["named"] == [False, True, None, "wandb.sdk"]


def test_nothing_is_left_in_the_way(started: dict[str, Any]) -> None:
    assert started["finders"] == []


NAMES = """
import pickle, torchmetrics, torchmetrics.functional as F
for package in (torchmetrics, F):
    for name in sorted(package.__all__):
        found = getattr(package, name)
        print(package.__name__, name, found.__module__ if callable(found) else found.__name__)
from torchmetrics import *
from torchmetrics.functional.image import structural_similarity_index_measure as ssim
from torchmetrics.image import StructuralSimilarityIndexMeasure as S
import torchmetrics.text, scipy.signal
print(ssim.__module__, S.__module__, torchmetrics.text.BLEUScore.__module__)
print(scipy.signal.windows.hann(3), pickle.loads(pickle.dumps(torchmetrics.BLEUScore())))
print(type(torchmetrics.image).__name__, hasattr(torchmetrics, "nothing"))
"""
PLOTS_AND_THE_COMPILER = """
import torch, torchvision, lightning.pytorch as pl
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultMetric
from lightning.pytorch.utilities.compile import from_compiled, to_uncompiled
from torchmetrics.classification import BinaryAccuracy
from timm.models.naflexvit import NaFlexRopeIterator
print(_ResultMetric.update.__name__, NaFlexRopeIterator.__init__.__name__)
print(torchvision.ops.roi_align(torch.ones(1, 1, 4, 4), [torch.tensor([[0., 0., 4., 4.]])], 2))
class Task(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
    def training_step(self, batch, number):
        self.log("loss", loss := self.layer(batch[0]).sum())
        return loss
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
trainer = pl.Trainer(max_steps=2, accelerator="cpu", **quiet)
images = torch.utils.data.TensorDataset(torch.ones(2, 2))
trainer.fit(Task(), torch.utils.data.DataLoader(images))
compiled = torch.compile(Task())
print(list(trainer.callback_metrics), from_compiled(compiled)._compiler_ctx["compiler"])
print(to_uncompiled(compiled))
metric = BinaryAccuracy()
metric.update(torch.ones(2), torch.ones(2))
print(*map(type, metric.plot()))
"""


@pytest.mark.parametrize("order", ["kora, timm", "timm, kora"])
def test_timm_knows_the_embedded_model_after_import_kora(order: str) -> None:
    made = printed(f"import {order}; print(type(timm.create_model('vit_nano')).__name__)")
    assert made == "VisionTransformer"


@pytest.fixture(scope="module")
def both() -> list[list[str]]:
    """What the two pieces print, each after `import kora` and without it."""
    code = f"{NAMES}\nprint('---')\n{PLOTS_AND_THE_COMPILER}"
    ours, plain = (printed(f"{first}\n{code}").split("---\n") for first in ("import kora", ""))
    return [list(pair) for pair in zip(ours, plain, strict=True)]


def test_every_name_is_where_it_was_and_the_same_thing(both: list[list[str]]) -> None:
    ours, plain = both[0]
    assert len(ours.splitlines()) > 150
    assert ours == plain


def test_plots_and_what_the_compiler_leaves_alone_work_as_ever(both: list[list[str]]) -> None:
    ours, plain = both[1]
    assert len(ours.splitlines()) > 5
    assert ours == plain
