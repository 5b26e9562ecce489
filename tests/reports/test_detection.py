"""Claims about the audit, the pictures and the predictions of a detection run."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import seed_everything
from rich.console import Console

from datamodules import DetectionFolder
from datamodules.detection.boxes import Boxes
from datamodules.detection.statistics import BoxStatistics
from kora.adapters import LinearProbe
from kora.heads import FCOSHead
from kora.reports.audit_detection import DetectionAudit, audit_detection
from kora.reports.detection import DetectionReport
from kora.tasks import DetectionTask
from tests.support.detection import NAMES, objects, write_coco
from tests.support.factory import nano
from tests.support.tasks import trainer


def statistics(*labels: int, of_images: int = 20, outside: int = 0) -> BoxStatistics:
    """One image of 100 x 100 pixels with a box of 10 x 10 for each label."""
    corners = np.array([[10, 10, 20, 20]] * len(labels), dtype=np.float32).reshape(-1, 4)
    found = Boxes(
        (100, 100), corners, np.array(labels, dtype=np.int64), np.zeros(len(labels), dtype=bool),
        outside, 0,
    )  # fmt: skip
    return BoxStatistics.of_boxes([found], num_classes=2, of_images=of_images)


def audited(**splits: BoxStatistics) -> DetectionAudit:
    whole = {"train": statistics(0, 1), "test": statistics(0, 1), **splits}
    return audit_detection(whole, class_names=NAMES)


def test_good_boxes_have_only_a_warning_that_nothing_validates() -> None:
    found = audited()
    found.check(allow_degenerate=False)
    assert [text.split(":")[0] for text in found.warnings] == ["There is no validation split"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_without_boxes_stops_a_run_whatever_is_allowed(split: str) -> None:
    with pytest.raises(ValueError, match=r"No image of the .* split has a box"):
        audited(**{split: statistics()}).check(allow_degenerate=True)


def test_a_class_that_only_the_test_has_stops_a_run() -> None:
    few = statistics(0, of_images=1)
    with pytest.raises(ValueError, match=r"No training image has a box of 'dog', which is 50.00%"):
        audited(train=few).check(allow_degenerate=False)
    # Of many training images only a part was looked at: the others may have it.
    audited(train=statistics(0, of_images=500)).check(allow_degenerate=False)


def test_what_stops_nothing_is_said() -> None:
    one, few = statistics(0), statistics(0, of_images=3)
    found = audited(train=one, val=few, test=statistics(0, outside=2))
    assert [text.split(":")[0] for text in found.warnings] == [
        "2 boxes of the test split reach beyond their image, and were clipped.",
        "The validation split has only 3 images",
        "Neither training nor test images have a box of 'dog'",
    ]


def test_the_table_counts_boxes_by_class_and_by_size() -> None:
    console = Console(width=100, record=True)
    console.print(audited(train=statistics(0, 0, 1)).render())
    text = console.export_text()
    assert "without boxes" in text
    assert [line.split() for line in text.splitlines() if line.strip().startswith("cat")] == [
        ["cat", "2", "1"]
    ]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> DetectionReport:
    folder = tmp_path_factory.mktemp("boxes")
    for part in ("train", "test"):
        write_coco(folder / part, objects(12, prefix=part))
    seed_everything(2, verbose=False)
    every = {"score_threshold": 0.0, "max_detections": 5}
    task = DetectionTask(
        nano(image_size=32), LinearProbe(), head=FCOSHead(channels=32), protocol=every
    )
    data = DetectionFolder(str(folder), image_size=32, num_workers=0, val_images=4, batch_size=4)
    trainer(folder, enable_checkpointing=False).test(task, data, verbose=False)
    made = DetectionReport(task, data)
    made.gather("test")
    return made


def test_pictures_show_the_image_without_its_filling(report: DetectionReport) -> None:
    assert report.samples is not None
    for image, truth, guess in report._separate(report.samples):
        assert image.shape == (3, 19, 32)  # of 24 x 40, seen at 32 x 32
        for found in (truth, guess):
            assert (found["boxes"] <= np.array([32, 19.2, 32, 19.2]) + 1e-3).all()


def test_ap_of_each_class_is_drawn_and_written(report: DetectionReport, tmp_path: Path) -> None:
    made = report.pictures(tmp_path)
    assert [path.name for path in made] == ["test_boxes.png", "ap_by_class.png"]
    report.write_tables(tmp_path)
    rows = list(csv.DictReader((tmp_path / "ap_by_class.csv").open()))
    assert [row["class"] for row in rows] == NAMES
    mean = np.mean([float(row["ap"]) for row in rows])
    assert mean == pytest.approx(float(report.task.trainer.callback_metrics["test/map"]), abs=1e-5)


def test_predictions_are_results_of_coco(report: DetectionReport, tmp_path: Path) -> None:
    batch = {"index": torch.tensor([7, 9]), **report.samples[1]}
    batch = {name: column[:2] for name, column in batch.items()} | {"index": torch.tensor([7, 9])}
    rows = json.loads(report.write_predictions(tmp_path, [batch]).read_text())
    assert {row["image_id"] for row in rows} == {7, 9}
    first, box = rows[0], batch["boxes"][0, 0]
    assert first["bbox"] == pytest.approx(
        [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()], abs=1e-3
    )
    assert first["category"] == NAMES[first["category_id"]]
    assert first["file_name"] == report.datamodule.image_names("test")[first["image_id"]]
    assert first["score"] == pytest.approx(float(batch["scores"][0, 0]), abs=1e-4)
