"""Claims about the gradient that reaches the nodes of KoRA, as a run records it."""

from __future__ import annotations

import csv
import json
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from datamodules import Synthetic
from kora.adapters import ClsReadout, KoRA, LoRA, PaperForm
from kora.tasks import ClassificationTask
from kora.training.node_gradients import (
    GRADIENTS_NAME,
    GradientNorms,
    NodeGradients,
    read_gradients,
)
from tests.support.factory import built, family, kick, labels_for, nano
from tests.support.families import tiny
from tests.support.two_ranks import QUIET, on_two_ranks

pytestmark = pytest.mark.runs

KEYS = [f"b{i:02d}_{site}" for i in range(6) for site in ("qkv", "proj", "fc1", "fc2")]


def data(**options: Any) -> Synthetic:
    """Five batches of eight images an epoch, then an incomplete one."""
    given = {"train_images": 48, "val_images": 4, "test_images": 12, "batch_size": 8, **options}
    return Synthetic(image_size=32, seed=0, **given)


def unbuilt(adapter: Any = None, **options: Any) -> ClassificationTask:
    torch.manual_seed(2)
    adapter = KoRA(PaperForm(2), 4, readout=ClsReadout("default")) if adapter is None else adapter
    return ClassificationTask(nano(image_size=32), adapter, **options)


def fitted(
    folder: Path, task: ClassificationTask | None = None, *, batch_size: int = 8, **options: Any
) -> Trainer:
    """Train with the callback; what it read lies in the folder."""
    callbacks = [NodeGradients(folder), *options.pop("callbacks", [])]
    ckpt_path = options.pop("ckpt_path", None)
    trainer = Trainer(**{**QUIET, "max_epochs": 1, "callbacks": callbacks, **options})
    torch.manual_seed(5)
    task = unbuilt() if task is None else task
    trainer.fit(task, datamodule=data(batch_size=batch_size), ckpt_path=ckpt_path)
    return trainer


def steps(folder: Path) -> list[int]:
    readings = read_gradients(folder)
    assert readings is not None
    return [reading["step"] for reading in readings]


@pytest.mark.parametrize("inject", [True, False])
def test_it_is_the_gradient_of_each_images_own_loss(inject: bool, images: Tensor) -> None:
    task = kick(
        built(KoRA(PaperForm(2, inject=inject), 4, readout=ClsReadout("default"))), scale=0.3
    )
    adapter, labels = task.adapter, labels_for(images)
    assert isinstance(adapter, KoRA)
    norms = GradientNorms(list(adapter.nodes))
    seen: list[Tensor] = []
    adapter.observer = lambda p, c: (norms.observe(p, c), seen.extend((*p, c)))[0]
    F.cross_entropy(task(images), labels).backward()
    found = norms.means()
    assert list(found) == [*KEYS, "composed"]
    expected = dict.fromkeys(found, 0.0)
    for image, label in zip(images, labels, strict=True):
        seen.clear()
        loss = F.cross_entropy(task(image[None]), label[None])
        for key, gradient in zip(found, torch.autograd.grad(loss, seen), strict=True):
            expected[key] += float(gradient.double().norm()) / len(images)
    # Far back it comes from rounding, as float32 has no more digits there.
    near = [*KEYS[-6:], "composed"]
    assert [found[key] for key in near] == pytest.approx([expected[k] for k in near], rel=1e-3)
    assert min(found[key] for key in near) > 0


def test_the_chain_forgets_and_the_run_says_so(tmp_path: Path) -> None:
    """FACTS of the published composer: on 48 nodes nothing at all reaches the first ones."""
    torch.manual_seed(0)
    task = ClassificationTask(
        family("narrow_vit_tiny_patch16_224"), KoRA(PaperForm(8), 8, readout=ClsReadout("default"))
    )
    fitted(tmp_path, task, max_steps=2)
    readings = read_gradients(tmp_path)
    assert readings is not None
    for reading in readings:
        norms = list(reading["nodes"].values())
        assert len(norms) == 48
        assert norms[-1] > 1e-3
        assert norms[-1] > 1e3 * norms[-4] > 0
        assert norms[-1] > 1e6 * norms[-9] > 0
        assert norms[:4] == [0.0] * 4
        assert reading["composed"] > norms[-1]


def test_a_readout_that_starts_at_zero_lets_nothing_through_at_the_first_step(
    tmp_path: Path,
) -> None:
    fitted(tmp_path, unbuilt(KoRA(PaperForm(2), 4)))
    first, second, *_ = read_gradients(tmp_path) or []
    assert first["composed"] == 0
    assert set(first["nodes"].values()) == {0}
    assert second["composed"] > 0
    assert second["nodes"]["b05_fc2"] > 0


@pytest.mark.parametrize("inject", [True, False])
def test_the_first_the_second_the_hundredth_and_the_last_step_are_read(
    tmp_path: Path, inject: bool
) -> None:
    trainer = fitted(
        tmp_path, unbuilt(KoRA(PaperForm(1, inject=inject, blocks=[5]), 2)), max_epochs=19
    )
    assert trainer.global_step == 114
    assert steps(tmp_path) == [1, 2, 100, 114]
    (other,) = {len(reading["nodes"]) for reading in read_gradients(tmp_path) or []}
    assert other == 4


def test_max_steps_ends_it_too(tmp_path: Path) -> None:
    fitted(tmp_path, max_epochs=-1, max_steps=9)
    assert steps(tmp_path) == [1, 2, 9]


def test_the_log_has_the_redundancy_of_each_step_that_is_read_and_of_no_other(
    tmp_path: Path,
) -> None:
    """At the number that Lightning gives the step, whether or not it would log it."""
    logger = CSVLogger(tmp_path, name="", version="")
    fitted(tmp_path, max_steps=14, max_epochs=-1, logger=logger, log_every_n_steps=4)
    with (tmp_path / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/redundancy"]]
    readings = read_gradients(tmp_path) or []
    # The end of an epoch (6, 12) is read in case it is the last, and kept in the log alone.
    assert [int(row["step"]) for row in rows] == [0, 1, 5, 11, 13]
    assert [int(row["epoch"]) for row in rows] == [0, 0, 0, 1, 2]
    logged = {int(row["step"]) + 1: float(row["train/redundancy"]) for row in rows}
    assert {one["step"]: one["redundancy"] for one in readings} == {
        step: pytest.approx(logged[step]) for step in (1, 2, 14)
    }
    assert logged.pop(1) == 0  # B is zero yet, and what says nothing is orthogonal to all
    assert len(set(logged.values())) == 4
    assert all(0 < value < 1 for value in logged.values())


def test_a_run_that_stops_early_has_the_last_step_of_its_last_epoch(tmp_path: Path) -> None:
    class Enough(Callback):
        def on_train_epoch_end(self, trainer: Trainer, *args: Any) -> None:
            trainer.should_stop = trainer.current_epoch == 1

    fitted(tmp_path, max_epochs=50, callbacks=[Enough()])
    assert steps(tmp_path) == [1, 2, 12]


def test_between_the_steps_that_are_read_nobody_listens(tmp_path: Path) -> None:
    listening = []

    class Look(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, module: Any, *args: Any) -> None:
            listening.append(module.adapter.observer is not None)

    fitted(tmp_path, max_epochs=2, callbacks=[Look()])
    assert listening == [True, True, False, False, False, True, *[False] * 5, True]


def test_it_changes_nothing_of_training(tmp_path: Path) -> None:
    watched, alone = unbuilt(), unbuilt()
    fitted(tmp_path, watched)
    torch.manual_seed(5)
    Trainer(**{**QUIET, "max_epochs": 1}).fit(alone, datamodule=data())
    for (name, one), other in zip(
        watched.state_dict().items(), alone.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


def test_accumulated_batches_read_as_one_batch_of_their_images(tmp_path: Path) -> None:
    fitted(tmp_path / "whole", max_steps=1)
    fitted(tmp_path / "halves", batch_size=4, max_steps=1, accumulate_grad_batches=2)
    whole, halves = (read_gradients(tmp_path / name) for name in ("whole", "halves"))
    assert whole is not None
    assert halves is not None
    assert (whole[0]["images"], halves[0]["images"]) == (8, 8)
    last = "b05_fc2"
    assert whole[0]["nodes"][last] == pytest.approx(halves[0]["nodes"][last], rel=1e-4)
    assert whole[0]["composed"] == pytest.approx(halves[0]["composed"], rel=1e-4)


def test_a_resumed_run_has_what_was_read_before(tmp_path: Path) -> None:
    fitted(tmp_path / "whole", max_epochs=2)
    first = fitted(tmp_path / "first", max_epochs=2, max_steps=6)
    first.save_checkpoint(tmp_path / "half.ckpt")
    fitted(tmp_path / "second", max_epochs=2, ckpt_path=tmp_path / "half.ckpt")
    assert steps(tmp_path / "first") == [1, 2, 6]
    assert steps(tmp_path / "second") == steps(tmp_path / "whole") == [1, 2, 12]
    both = [read_gradients(tmp_path / name) for name in ("second", "whole")]
    assert both[0] is not None
    assert both[1] is not None
    assert both[0][:2] == both[1][:2]


def _on_a_rank(rank: int) -> dict[str, Any]:
    folder = Path(f"node_gradients_{rank}").resolve()
    fitted(folder, devices=2, strategy="ddp")
    found = read_gradients(folder)
    return {"readings": found}


@pytest.mark.slow
def test_of_two_processes_the_first_reads_its_own_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = on_two_ranks(_on_a_rank, tmp_path)
    assert second["readings"] is None
    assert [reading["step"] for reading in first["readings"]] == [1, 2, 3]
    assert first["readings"][0]["images"] == 8
    assert first["readings"][0]["nodes"]["b05_fc2"] > 0


@pytest.mark.parametrize(
    ("adapter", "options"),
    [(LoRA(2), {}), (KoRA(PaperForm(2), 4), {"adapter_trainable": False})],
    ids=["LoRA", "frozen KoRA"],
)
def test_what_has_no_nodes_that_train_leaves_no_file(
    tmp_path: Path, adapter: Any, options: dict[str, Any]
) -> None:
    fitted(tmp_path, unbuilt(adapter, **options), max_steps=1)
    assert read_gradients(tmp_path) is None


def test_a_compiled_task_trains_and_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = partialmethod(ClassificationTask.compile, backend="aot_eager")  # no C++ of graphs
    monkeypatch.setattr(ClassificationTask, "compile", compiled)
    adapter = KoRA(PaperForm(2, blocks=[1]), 4, readout=ClsReadout("default"))
    task = ClassificationTask(tiny("tiny_vit"), adapter, compile=True)
    trainer = fitted(tmp_path, task, max_steps=2)
    assert trainer.global_step == 2
    assert read_gradients(tmp_path) is None


def test_a_damaged_file_and_another_schema_are_told(tmp_path: Path) -> None:
    fitted(tmp_path, max_steps=1)
    path = tmp_path / GRADIENTS_NAME
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(RuntimeError, match=r"node_gradients\.json is damaged"):
        read_gradients(tmp_path)
    path.write_text(json.dumps({**json.loads(text), "schema": 9}))
    with pytest.raises(ValueError, match="of schema 9"):
        read_gradients(tmp_path)
