"""Claims about the classification task; the reference metrics are plain NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kora.adapters import LinearProbe
from kora.tasks import ClassificationTask
from tests.support.classification import Noise, trainer
from tests.support.factory import built, nano


def expected_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, top-5, F1 over the classes that occur or are predicted, and loss."""
    predicted = logits.argmax(1)
    f1, support = {}, {}
    for k in np.union1d(labels, predicted):
        hits = np.sum((predicted == k) & (labels == k))
        f1[k] = 2 * hits / (np.sum(predicted == k) + np.sum(labels == k))
        support[k] = np.sum(labels == k)
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    top5 = np.argsort(-logits, axis=1)[:, :5]
    return {
        "accuracy": float(np.mean(predicted == labels)),
        "top5_accuracy": float(np.mean((top5 == labels[:, None]).any(1))),
        "macro_f1": float(np.mean(list(f1.values()))),
        "weighted_f1": float(sum(f1[k] * support[k] for k in f1) / len(labels)),
        "loss": float(-np.mean(log_p[np.arange(len(labels)), labels])),
    }


def half_right(data: Noise) -> ClassificationTask:
    """A task whose head knows 15 of the 29 labels and ranks the true class at random in the rest.

    The first batch is all right: there torchmetrics' default would let top-5 share F1's counts.
    """
    task = built(LinearProbe(), num_classes=data.num_classes)
    generator = torch.Generator().manual_seed(1)
    wanted = torch.rand(len(data.labels), data.num_classes, generator=generator).double()
    wanted[torch.arange(15), data.labels[:15]] = 2
    wrong = torch.arange(15, len(data.labels))
    wanted[wrong, (data.labels[wrong] + 1) % data.num_classes] = 2
    with torch.no_grad():
        features = task.features(data.images).pooled.double()
        rows = torch.cat([features, torch.ones(len(features), 1)], dim=1)
        solution = torch.linalg.pinv(rows) @ wanted  # 129 unknowns: 29 images are met exactly
        task.head.linear.weight.copy_(solution[:-1].T)
        task.head.linear.bias.copy_(solution[-1])
    return task


@pytest.mark.parametrize("stage", ["test", "validate"])
def test_metrics_over_uneven_batches_equal_numpy(stage: str, tmp_path: Path) -> None:
    data = Noise()
    task = half_right(data)
    (found,) = getattr(trainer(tmp_path), stage)(task, datamodule=data, verbose=False)
    with torch.no_grad():
        logits = task(data.images).double().numpy()
    expected = expected_metrics(logits, data.labels.numpy())
    ranked = np.sort(logits, axis=1)
    assert np.diff(ranked, axis=1).min() > 1e-4  # no tie that rounding could turn
    assert len(set(expected.values())) == 5  # no two agree by chance
    assert expected["accuracy"] == pytest.approx(15 / 29)
    prefix = "test" if stage == "test" else "val"
    assert found == pytest.approx({f"{prefix}/{k}": v for k, v in expected.items()}, abs=1e-5)


def test_the_confusion_matrix_is_that_of_the_last_test(tmp_path: Path) -> None:
    data = Noise()
    task, run = half_right(data), trainer(tmp_path)
    for _ in range(2):
        run.test(task, datamodule=data, verbose=False)
    matrix = task.test_confusion.compute()
    predicted = task(data.images).argmax(1)
    expected = torch.zeros(9, 9, dtype=torch.long)
    for label, guess in zip(data.labels, predicted, strict=True):
        expected[label, guess] += 1
    assert torch.equal(matrix.cpu(), expected)


@pytest.mark.parametrize(("num_classes", "there"), [(5, False), (6, True)])
def test_top5_is_there_where_it_can_be_below_one(
    num_classes: int, there: bool, tmp_path: Path
) -> None:
    task = ClassificationTask(nano())
    (found,) = trainer(tmp_path).test(task, datamodule=Noise(num_classes), verbose=False)
    assert ("test/top5_accuracy" in found) == there


def test_predictions_name_their_image_and_are_probabilities(tmp_path: Path) -> None:
    task, data = ClassificationTask(nano()), Noise()
    batches = trainer(tmp_path).predict(task, datamodule=data)
    assert batches is not None
    index = torch.cat([batch["index"] for batch in batches])  # type: ignore[call-overload]
    guess = torch.cat([batch["prediction"] for batch in batches])  # type: ignore[call-overload]
    sure = torch.cat([batch["confidence"] for batch in batches])  # type: ignore[call-overload]
    logits = task(data.images)
    assert index.tolist() == list(range(100, 129))
    assert torch.equal(guess, logits.argmax(1))
    torch.testing.assert_close(sure, logits.softmax(1).amax(1).detach())


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_label_smoothing_is_in_the_training_loss_only(smoothing: float, images: Tensor) -> None:
    task = built(LinearProbe(), label_smoothing=smoothing)
    task.log = lambda *args, **kwargs: None
    batch = {"image": images, "label": torch.tensor([0, 3, 6])}
    loss = task.training_step(batch, 0)
    log_p = task(images).log_softmax(1)
    plain = -log_p[torch.arange(3), batch["label"]]
    mixed = (1 - smoothing) * plain - smoothing * log_p.mean(1)
    torch.testing.assert_close(loss, mixed.mean())
    task.test_step(batch, 0)
    torch.testing.assert_close(
        task.test_loss.compute(), F.cross_entropy(task(images), batch["label"])
    )


@pytest.mark.parametrize("step", ["training_step", "validation_step", "test_step"])
@pytest.mark.parametrize("label", [-100, 7])
def test_a_label_out_of_range_names_the_sample(step: str, label: int, images: Tensor) -> None:
    task = built(LinearProbe())
    batch = {
        "image": images,
        "label": torch.tensor([0, label, 1]),
        "index": torch.tensor([40, 41, 42]),
    }
    with pytest.raises(
        ValueError, match=rf"Label {label} \(sample 41\) is out of range; expected 0 to 6"
    ):
        getattr(task, step)(batch, 0)
    with pytest.raises(ValueError, match=r"sample 41"):  # before a GPU has it
        task.transfer_batch_to_device(batch, torch.device("meta"), 0)


def test_the_number_of_classes_comes_from_the_data_module(tmp_path: Path) -> None:
    task = ClassificationTask(nano())
    trainer(tmp_path).test(task, datamodule=Noise(9), verbose=False)
    assert task.num_classes == 9
    assert task.head is not None
    assert task.head.linear.out_features == 9


def test_without_a_number_of_classes_it_says_what_to_set() -> None:
    with pytest.raises(ValueError, match=r"number of classes is not known.*num_classes"):
        ClassificationTask(nano()).build()


@pytest.mark.parametrize("num_classes", [1, 0, -3])
def test_fewer_than_two_classes_are_refused(num_classes: int) -> None:
    with pytest.raises(ValueError, match=rf"num_classes={num_classes}; .*two classes or more"):
        built(LinearProbe(), num_classes=num_classes)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_a_smoothing_outside_of_its_range_is_refused(smoothing: float) -> None:
    with pytest.raises(ValueError, match=r"label_smoothing=.*expected a share in \[0, 1\)"):
        ClassificationTask(nano(), label_smoothing=smoothing)


@pytest.mark.slow
def test_it_learns_what_can_be_learned(tmp_path: Path) -> None:
    """Brightness in three classes: a linear probe on random features gets all of them."""

    class Brightness(Noise):
        def __init__(self) -> None:
            super().__init__(num_classes=3, size=30)
            self.labels = torch.arange(30) % 3
            self.images = (
                (self.labels * 100).to(torch.uint8)[:, None, None, None].expand(30, 3, 8, 8)
            )

    task = ClassificationTask(
        nano(image_size=32), optimizer=lambda params: torch.optim.AdamW(params, lr=0.05)
    )
    run = trainer(tmp_path, max_epochs=8)
    run.fit(task, datamodule=Brightness())
    (found,) = run.test(task, datamodule=Brightness(), verbose=False)
    assert found["test/accuracy"] == 1
