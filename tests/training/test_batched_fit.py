"""Many fits at once are the same fits one after another."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from lightning import Trainer
from torch import Tensor

from datamodules import Synthetic
from kora.adapters import KoRA, LinearProbe, MultiLayerProbe, PaperForm, Strategy
from kora.backbone.frozen_inputs import is_read
from kora.feature_cache.rules import head_reads
from kora.tasks import ClassificationTask
from kora.training.batched_fit import Setting, Start, fit_together
from tests.support.families import tiny
from tests.support.two_ranks import QUIET

SETTINGS = [Setting(1e-2, 1e-3, 0.1), Setting(1e-3, 1e-2, 0.0), Setting(3e-3, 3e-3, 0.5)]
STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "LinearProbe": LinearProbe,
    "MultiLayerProbe": lambda: MultiLayerProbe(cls_blocks=[-2, -1], mean_blocks=[-1]),
    "KoRA-side": lambda: KoRA(PaperForm(4, inject=False), 4),
}


def data(seed: int = 3) -> Synthetic:
    return Synthetic(
        image_size=32, seed=seed, train_images=40, test_images=13, val_fraction=0, batch_size=9
    )


def built(strategy: Strategy, seed: int = 2) -> ClassificationTask:
    backbone = tiny("tiny_vit")  # draws from a seed of its own, once
    torch.manual_seed(seed)
    task = ClassificationTask(backbone, strategy, num_classes=12)
    task.build()
    return task


def inputs_of(task: ClassificationTask, images: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        found = task.adapter.frozen_pass().inputs(task.backbone, images)
    return {name: it for name, it in found.items() if is_read(name, head_reads(task))}


@pytest.mark.parametrize("name", STRATEGIES)
def test_each_is_the_fit_that_lightning_makes(name: str) -> None:
    images = data()
    images.setup("fit")
    task = built(STRATEGIES[name]())
    pixels = images.images("train", range(40))
    inputs, labels = inputs_of(task, pixels), torch.from_numpy(images.labels("train"))
    before = copy.deepcopy(dict(task.trainables()))
    found = fit_together(task, inputs, labels, SETTINGS, epochs=3, batch_size=9, seed=3)
    assert all(torch.equal(before[key], it) for key, it in task.trainables().items())
    logits = found.logits(task, inputs)
    assert logits.shape == (3, 40, 12)
    for place, setting in enumerate(SETTINGS):
        one = built(STRATEGIES[name]())
        one.head_lr = setting.head_lr
        one.optimizer = lambda groups, s=setting: torch.optim.AdamW(
            groups, lr=s.lr, weight_decay=s.weight_decay
        )
        Trainer(**{**QUIET, "max_epochs": 3}).fit(one, datamodule=data())
        for key, tensor in one.trainables().items():
            torch.testing.assert_close(found.tensors[key][place], tensor, rtol=0, atol=1e-5)
        with torch.no_grad():
            alone = one.eval()(inputs)
        torch.testing.assert_close(logits[place], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", STRATEGIES)
def test_fits_of_other_seeds_have_their_own_start_images_and_order(name: str) -> None:
    tasks, starts = [], []
    for seed in (3, 4):
        images = data(seed)
        images.setup("fit")
        task = built(STRATEGIES[name](), seed)
        inputs = inputs_of(task, images.images("train", range(40)))
        first = {key: it.detach().clone() for key, it in task.trainables().items()}
        starts.append(Start(first, inputs, torch.from_numpy(images.labels("train")), seed))
        tasks.append(task)
    rates = [(0, 1e-2), (1, 1e-2), (1, 1e-3)]
    settings = [Setting(lr, 1e-3, 0.1, start=starts[which]) for which, lr in rates]
    means: list[Tensor] = []
    found = fit_together(
        tasks[1], starts[0].inputs, starts[0].labels, settings, epochs=2, batch_size=9, seed=0,
        after_epoch=lambda epoch, trained, losses: means.append(losses),
    )  # fmt: skip
    logits = found.logits(tasks[1], [starts[which].inputs for which, _ in rates], at_once=16)
    for place, (which, lr) in enumerate(rates):
        one = built(STRATEGIES[name](), 3 + which)
        one.head_lr = lr
        one.optimizer = lambda groups: torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1)
        shown: list[float] = []
        one.log = lambda key, value, *_, shown=shown, **__: (
            shown.append(float(value)) if key == "train/loss" else None
        )
        Trainer(**{**QUIET, "max_epochs": 2}).fit(one, datamodule=data(3 + which))
        for key, tensor in one.trainables().items():
            torch.testing.assert_close(found.tensors[key][place], tensor, rtol=0, atol=1e-5)
        with torch.no_grad():
            alone = one.eval()(starts[which].inputs)
        torch.testing.assert_close(logits[place], alone, rtol=0, atol=1e-4)
        assert means[-1][place] == pytest.approx(sum(shown[-5:]) / 5, abs=1e-4)


def test_fits_of_more_images_and_of_fewer_do_not_train_together() -> None:
    task = built(LinearProbe())
    starts = [
        Start(task.trainables(), {"pooled": torch.ones(n, 32)}, torch.zeros(n).long(), 0)
        for n in (4, 5)
    ]
    settings = [Setting(1e-2, 1e-2, start=one) for one in starts]
    with pytest.raises(ValueError, match="different numbers of training images"):
        fit_together(task, *starts[0][1:3], settings, epochs=1, batch_size=4, seed=0)


def test_the_steps_are_counted() -> None:
    task, seen = built(LinearProbe()), []
    fit_together(
        task, {"pooled": torch.randn(10, 32)}, torch.zeros(10, dtype=torch.int64), SETTINGS[:1],
        epochs=2, batch_size=4, seed=0, after_step=lambda done, steps: seen.append((done, steps)),
    )  # fmt: skip
    assert seen == [(number, 6) for number in range(1, 7)]


def test_a_regulariser_is_refused() -> None:
    class Pulled(LinearProbe):
        def penalty(self) -> Tensor:
            return torch.zeros(())

    with pytest.raises(ValueError, match="Pulled has a regulariser: train it with kora fit"):
        fit_together(
            built(Pulled()), {"pooled": torch.randn(4, 32)}, torch.zeros(4, dtype=torch.int64),
            SETTINGS, epochs=1, batch_size=4, seed=0,
        )  # fmt: skip


def test_each_fit_has_its_own_dropout_and_another_kind_of_dropout_is_refused() -> None:
    task = built(LinearProbe())
    task.head.dropout = stand_in = 1 / 1024
    inputs, labels = {"pooled": torch.ones(6, 32)}, torch.arange(6)
    settings = [Setting(1e-2, 1e-2, 0.0, (share,)) for share in (0.0, 0.5, 0.0)]
    options = {"epochs": 1, "batch_size": 6, "seed": 0, "stand_ins": [stand_in]}
    found = fit_together(task, inputs, labels, settings, **options)
    without, with_half, again = found.tensors["head.linear.weight"]
    torch.testing.assert_close(without, again, rtol=0, atol=1e-6)
    assert not torch.allclose(without, with_half, atol=1e-3)
    task.head.dropout = 0.0
    with pytest.raises(ValueError, match="LinearProbe has a dropout that is not torch's"):
        fit_together(task, inputs, labels, settings, **options)
