"""Claims about the audit of masks: what stops a run, what is said, and what is shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rich.console import Console

from datamodules.segmentation.statistics import MaskStatistics
from kora.reports.audit_segmentation import SegmentationAudit, audit_segmentation

NAMES = ["road", "sky", "tree"]


def statistics(*masks: Any, of_images: int = 20) -> MaskStatistics:
    arrays = [np.array(mask, dtype=np.uint8) for mask in masks]
    return MaskStatistics.of_masks(arrays, num_classes=3, image_size=(2, 2), of_images=of_images)


ALL = statistics([[0, 1], [2, 2]])


def audited(**splits: MaskStatistics) -> SegmentationAudit:
    return audit_segmentation({"train": ALL, "test": ALL, **splits}, class_names=NAMES)


def test_good_masks_have_only_a_warning_that_nothing_validates() -> None:
    found = audited()
    found.check(allow_degenerate=False)
    assert [text.split(":")[0] for text in found.warnings] == ["There is no validation split"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_masks_that_are_all_ignored_stop_a_run_whatever_is_allowed(split: str) -> None:
    found = audited(**{split: statistics([[255, 255]])})
    with pytest.raises(ValueError, match=r"Every pixel of the 1 masks of the .* split is ignored"):
        found.check(allow_degenerate=True)


def test_an_empty_split_stops_a_run() -> None:
    found = audit_segmentation({"train": ALL}, class_names=NAMES)
    with pytest.raises(ValueError, match="The test split is empty"):
        found.check(allow_degenerate=True)


def test_a_split_of_one_class_stops_a_run_unless_allowed() -> None:
    found = audited(test=statistics([[1, 1]]))
    with pytest.raises(ValueError, match=r"test split shows one class only \(sky\)"):
        found.check(allow_degenerate=False)
    found.check(allow_degenerate=True)


def test_a_class_that_only_the_test_shows_stops_a_run() -> None:
    few = statistics([[0, 1]], of_images=1)
    with pytest.raises(ValueError, match=r"No training mask shows 'tree', which is 50.00% of the"):
        audited(train=few).check(allow_degenerate=False)
    # Of many training masks only a part was looked at: the others may show it.
    audited(train=statistics([[0, 1]], of_images=500)).check(allow_degenerate=False)


def test_what_limits_the_numbers_is_warned_of() -> None:
    few = statistics([[0, 1]], [[255, 255]], of_images=3)
    said = " ".join(audited(train=few, val=few, test=few).warnings)
    assert "1 of 2 masks of the test split are ignored as a whole" in said
    assert "The validation split has only 3 images" in said
    assert "Neither training nor test masks show 'tree'" in said


def test_the_table_shows_the_share_of_each_class() -> None:
    console = Console(width=100, record=True)
    console.print(audited(val=ALL).render())
    shown = console.export_text()
    assert "3 of 3" in shown
    row = next(line for line in shown.splitlines() if "tree" in line)
    assert row.split()[-3:] == ["50.00%"] * 3
