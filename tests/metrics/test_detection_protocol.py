"""The protocol of detection refuses what cannot be meant, before anything trains."""

from __future__ import annotations

from typing import Any

import pytest

from kora.metrics.detection_protocol import DetectionProtocol


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("score_threshold", "abc", r"score_threshold is 'abc', expected a number in \[0, 1\]"),
        ("score_threshold", True, "score_threshold is True, expected a number"),
        ("nms_iou", None, "nms_iou is None, expected a number"),
        ("nms_iou", 1.5, "nms_iou is 1.5, expected a number"),
        ("max_detections", 2.5, "max_detections is 2.5, expected a whole number from 1 to 100"),
        ("max_detections", True, "max_detections is True, expected a whole number"),
        ("max_detections", 101, "max_detections is 101, expected a whole number"),
    ],
)
def test_a_wrong_value_is_named(field: str, value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DetectionProtocol.read({field: value})
