"""Claims about the task of detection; what all tasks share is in test_contract.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import seed_everything
from torch import Tensor

from datamodules import Synthetic
from kora.adapters import (
    KoRA,
    LinearProbe,
    LogitReadout,
    LoRA,
    MultiLayerProbe,
    PaperForm,
    Strategy,
    Sum,
)
from kora.heads import FCOSHead, RetinaNetHead
from kora.tasks import DetectionTask
from tests.support.factory import nano
from tests.support.tasks import trainer

Batch = dict[str, Tensor]


def task(adapter: Strategy | None = None, **options: Any) -> DetectionTask:
    seed_everything(2, verbose=False)
    options = {"head": FCOSHead(channels=32), "protocol": {"score_threshold": 0.0}, **options}
    return DetectionTask(nano(image_size=32), adapter or LinearProbe(), **options)


def built(**options: Any) -> DetectionTask:
    made = task(num_classes=3, **options)
    made.build()
    return made


def batch(images: int = 3) -> Batch:
    draws = torch.Generator().manual_seed(1)
    return {
        "image": torch.randint(0, 256, (images, 3, 32, 32), generator=draws, dtype=torch.uint8),
        "boxes": torch.tensor([[4.0, 6, 20, 26], [10, 2, 30, 12]]).repeat(images, 1, 1),
        "box_label": torch.tensor([[0, 2]]).repeat(images, 1),
        "index": torch.arange(images),
    }


def scenes(**options: Any) -> Synthetic:
    return Synthetic(
        image_size=32, train_images=36, test_images=12, val_images=12, batch_size=12,
        maps=["boxes"], seed=0, **options,
    )  # fmt: skip


def test_boxes_come_in_the_pixels_of_the_picture_itself() -> None:
    """A picture of 128 x 96 is seen at 32 x 24: its boxes are four times those of the image."""
    model, given = built().eval(), batch()
    seen = model.predict_step(given, 0)
    given |= {"own_size": torch.tensor([[96, 128]] * 3), "size": torch.tensor([[24, 32]] * 3)}
    own = model.predict_step(given, 0)
    for row in range(3):
        there, found = seen["labels"][row] >= 0, own["labels"][row] >= 0
        expected = (4 * seen["boxes"][row][there]).minimum(torch.tensor([128.0, 96, 128, 96]))
        inside = expected[:, 3] > expected[:, 1]  # others lie in the filling below
        assert 0 < inside.sum() < len(inside)
        torch.testing.assert_close(own["boxes"][row][found], expected[inside])


def test_the_metrics_are_of_the_picture_itself() -> None:
    """A box of 16 x 20 pixels of the image is large in a picture that is eight times as large."""
    sizes = []
    for own in (None, 256):
        model, given = built().eval(), batch()
        if own is not None:
            given |= {"own_size": torch.full((3, 2), own), "size": torch.full((3, 2), 32)}
        model.validation_step(given, 0)
        sizes.append(model.val_metrics.compute())
    assert sizes[0]["map"] == sizes[1]["map"]
    assert sizes[0]["map_large"].isnan()
    assert sizes[1]["map_small"].isnan()
    assert sizes[1]["map_large"] >= 0


def test_a_crowd_region_is_background_in_training() -> None:
    losses = []
    for crowd in (False, True):
        model, given = built(), batch()
        if crowd:
            given["box_crowd"] = torch.tensor([[False, True]] * 3)
        else:
            given["box_label"][:, 1] = -1
        losses.append(model.training_step(given, 0).detach())
    assert losses[0] == losses[1]


def test_the_usual_boxes_are_scored_beside_the_model(tmp_path: Path) -> None:
    model = task(num_classes=6)
    trainer(tmp_path, enable_checkpointing=False).test(model, scenes(), verbose=False)
    found = model.baselines()["usual_boxes"]
    assert 0 < found["map_50"] < 1


def test_the_command_validate_scores_the_usual_boxes(tmp_path: Path) -> None:
    model = task(num_classes=6)
    trainer(tmp_path, enable_checkpointing=False).validate(model, scenes(), verbose=False)
    assert 0 < model.baselines()["usual_boxes"]["map_50"] < 1


def test_the_number_of_classes_follows_the_data(tmp_path: Path) -> None:
    model = task()
    trainer(tmp_path, enable_checkpointing=False).test(model, scenes(), verbose=False)
    assert model.num_classes == 6
    wrong = trainer(tmp_path, enable_checkpointing=False)
    with pytest.raises(ValueError, match="num_classes is 4, and the boxes of the data have 6"):
        wrong.test(task(num_classes=4), scenes(), verbose=False)


def test_data_without_boxes_is_refused(tmp_path: Path) -> None:
    plain = Synthetic(image_size=32, train_images=36, test_images=12, val_images=12, seed=0)
    with pytest.raises(ValueError, match=r"the data has no boxes.*DetectionFolder"):
        trainer(tmp_path, enable_checkpointing=False).test(task(), plain, verbose=False)
    with pytest.raises(ValueError, match="Batches hold image and no boxes"):
        built().training_step({"image": batch()["image"]}, 0)


@pytest.mark.parametrize(
    "adapter",
    [MultiLayerProbe(), KoRA(PaperForm(2), composer=Sum(), readout=LogitReadout())],
    ids=["layers", "logits"],
)
def test_what_only_classifiers_read_is_refused(adapter: Strategy) -> None:
    with pytest.raises(ValueError, match="is for classifiers: for detection"):
        built(adapter=adapter)


def test_a_run_is_named_after_another_detector() -> None:
    assert task(LoRA(2)).label == "LoRA"
    assert task(LoRA(2), head=RetinaNetHead()).label == "LoRA-RetinaNet"


def test_weights_in_half_precision_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"corners of boxes.*--trainer\.precision bf16-mixed"):
        trainer(tmp_path, max_epochs=1, precision="bf16-true").fit(task(), datamodule=scenes())
