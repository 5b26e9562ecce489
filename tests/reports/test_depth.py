"""Claims about what a depth run leaves behind beside its numbers."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import Synthetic
from kora.heads import LinearDepth
from kora.reports.depth import DepthReport
from kora.reports.of_task import report_for
from kora.tasks import DepthTask
from tests.support.factory import nano


@pytest.fixture
def data() -> Synthetic:
    """36 training, 12 validation and 24 test scenes of 32 pixels with depth."""
    module = Synthetic(
        image_size=32, train_images=48, test_images=24, val_images=12, maps=["depth_m"], seed=0
    )
    module.setup()
    return module


@pytest.fixture
def report(data: Synthetic) -> DepthReport:
    torch.manual_seed(0)
    task = DepthTask(nano(image_size=32), head=LinearDepth(bins=8), protocol="full")
    task.build()
    found = report_for(task, data)
    assert isinstance(found, DepthReport)
    return found


def test_the_audit_looks_at_every_split(report: DepthReport) -> None:
    audit = report.audit()
    assert audit is not None
    assert {name: s.of_images for name, s in audit.splits.items()} == {
        "train": 36,
        "val": 12,
        "test": 24,
    }


def test_an_epoch_has_a_picture_of_its_own_and_leaves_the_task_in_its_mode(
    report: DepthReport, tmp_path: Path
) -> None:
    report.task.train()
    drawn = [report.epoch_picture(tmp_path, epoch) for epoch in (0, 1)]
    assert report.task.training
    assert drawn == [tmp_path / f"val_depth/epoch_00{epoch}.png" for epoch in (0, 1)]
    for path in drawn:
        assert path is not None
        with Image.open(path) as picture:
            assert min(picture.size) > 200


def test_the_pictured_images_are_the_same_whatever_was_read_before(
    report: DepthReport, data: Synthetic, tmp_path: Path
) -> None:
    report.gather("test")
    first = report.pictures(tmp_path / "a")[0].read_bytes()
    next(iter(data.train_dataloader()))
    torch.rand(7)
    report.gather("test")
    assert report.pictures(tmp_path / "b")[0].read_bytes() == first


def test_sample_rows_are_the_pictured_images_with_their_error(report: DepthReport) -> None:
    assert report.sample_rows() == []
    report.gather("test")
    rows = report.sample_rows()
    assert len(rows) == 4
    batch, predicted = report.samples or ({}, {})
    for place, row in enumerate(rows):
        truth, guess = batch["depth_m"][place].numpy(), predicted["depth_m"][place].numpy()
        rmse = np.sqrt(np.mean((guess - truth)[truth > 0] ** 2))
        assert row["rmse_m"] == pytest.approx(rmse, rel=1e-5)
        assert np.array_equal(row["image"], batch["image"][place].permute(1, 2, 0))
        assert row["truth"].shape == row["prediction"].shape == row["image"].shape


def test_predictions_of_all_batches_lie_in_one_file(report: DepthReport, tmp_path: Path) -> None:
    batches = [
        {"index": torch.tensor(places), "depth_m": torch.full((len(places), 4, 5), float(at))}
        for at, places in enumerate(([0, 1, 2], [3, 4]))
    ]
    path = report.write_predictions(tmp_path, batches)
    with h5py.File(path) as file:
        assert np.array_equal(file["index"], np.arange(5))
        assert file["depth_m"].attrs["unit"] == "m"
        assert np.array_equal(file["depth_m"][:, 0, 0], [0, 0, 0, 1, 1])
    assert not list(tmp_path.glob("*tmp*"))


def test_the_evaluation_names_the_official_part_that_was_scored(report: DepthReport) -> None:
    assert report.evaluation("val")["split"] == "val"
    assert report.evaluation("test")["split"] == "test"
    report.datamodule.official_parts = {"train": "train", "test": "val"}
    assert report.evaluation("test")["split"] == "val"
