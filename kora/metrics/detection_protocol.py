"""Protocol of an evaluation of detection: which predicted boxes are scored."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from kora.metrics.protocol import check_split, is_number, known_fields

__all__ = ["DetectionProtocol"]


@dataclass(frozen=True)
class DetectionProtocol:
    """Everything that two results of detection must share before they may be compared.

    Boxes are scored in pixels of the image itself, by COCO's rules: precision at 101 levels of
    recall, averaged over IoU thresholds from 0.5 to 0.95 and over classes; small objects have less
    than 32 x 32 pixels, large ones 96 x 96 or more, by the area of the box; crowd regions are
    ignored.

    Args:
        split: Name of the split that the run must use; None leaves it to the data module.
        score_threshold: Boxes with a lower score are dropped.
        nms_iou: Of two boxes of a class that overlap more, the one with the lower score is dropped.
        max_detections: Boxes of an image that are kept, those with the highest scores.

    Raises:
        ValueError: A field has an invalid value.
    """

    split: str | None = None
    score_threshold: float = 0.05
    nms_iou: float = 0.6
    max_detections: int = 100

    def __post_init__(self) -> None:
        for name in ("score_threshold", "nms_iou"):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value <= 1:
                raise ValueError(f"protocol.{name} is {value!r}, expected a number in [0, 1].")
        whole = is_number(self.max_detections) and isinstance(self.max_detections, int)
        if not whole or not 1 <= self.max_detections <= 100:
            raise ValueError(
                f"protocol.max_detections is {self.max_detections!r}, expected a whole number from "
                "1 to 100: COCO's rules score no more boxes of an image."
            )
        check_split(self.split)

    @classmethod
    def read(cls, given: str | dict[str, Any]) -> DetectionProtocol:
        """`coco`, or fields that change it.

        Raises:
            ValueError: An unknown name or field, or an invalid value.
        """
        if given == "coco":
            return cls()
        if isinstance(given, str):
            raise ValueError(f"protocol is {given!r}, expected coco, or single fields.")
        known_fields(cls, given)
        return replace(cls(), **given)

    def to_dict(self) -> dict[str, Any]:
        """The fields in plain types."""
        return asdict(self)

    def sentence(self) -> str:
        """One line for tables."""
        parts = [
            "COCO's rules",
            f"scores from {self.score_threshold:g}",
            f"suppression at an IoU of {self.nms_iou:g}",
            f"at most {self.max_detections} boxes an image",
        ]
        return ", ".join([*([f"split {self.split}"] if self.split else []), *parts])
