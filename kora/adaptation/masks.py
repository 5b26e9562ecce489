"""`kora adapt` for images with masks: what is tried, and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datamodules import SegmentationFolder
from kora.adaptation.candidates import Candidate
from kora.adaptation.layout import PARTS
from kora.adaptation.result import AdaptedMasks
from kora.adaptation.trials import Kind
from kora.reports.audit_segmentation import SegmentationAudit
from kora.reports.segmentation import SegmentationReport
from kora.tasks import SegmentationTask
from kora.training.batched_fit import Setting

__all__ = ["MASKS"]


def _images(place: Path) -> Path:
    return next(p for p in (place / "images", *place.glob("*/images")) if p.is_dir())


def _options(place: Path) -> dict[str, str]:
    """The parts, by the names that their folders have."""
    there = {
        part: name
        for name, part in PARTS.items()
        if (place / name / "images").is_dir() and (place / name / "masks").is_dir()
    }
    if "test" not in there and "val" in there:  # as with boxes
        there["test"] = there.pop("val")
    return {f"{part}_dir": name for part, name in there.items()}


def _claim(names: Sequence[str], score: str) -> str:
    return f"gives each pixel one of {len(names)} classes with a mean IoU of {score}"


def _shares(audit: SegmentationAudit) -> list[str]:
    train = audit.splits["train"]
    shares = train.pixels / max(1, train.pixels.sum())
    listed = ", ".join(
        f"{name} {100 * share:.2g} %"
        for name, share in sorted(zip(audit.class_names, shares, strict=True), key=lambda p: -p[1])
    )
    return [f"Share of the training pixels: {listed}."]


MASKS = Kind(
    task=SegmentationTask,
    data=SegmentationFolder,
    report=SegmentationReport,
    result=AdaptedMasks,
    metric="miou",
    column="mIoU",
    layouts={
        "folder": "images and masks of the same names",
        "voc2012": "masks as VOC2012",
        "ade20k": "masks as ADE20K",
    },
    images=_images,
    options=_options,
    model={},
    cached=(
        Candidate(
            "LinearProbe",
            ("adapters/linear_probe",),
            "a linear head on four levels",
            tuple(Setting(rate, rate) for rate in (1e-2, 3e-3, 3e-2)),
        ),
        Candidate(
            "LinearProbe-queries",
            ("adapters/linear_probe", "heads/segmentation_queries"),
            "a query for each class reads four levels",
            tuple(Setting(rate, rate) for rate in (3e-3, 1e-3, 1e-2)),
        ),
    ),
    on_images=(
        Candidate(
            "LoRA",
            ("adapters/lora",),
            "a linear head on four levels",
            (Setting(3e-3, 1e-3), Setting(3e-3, 3e-4)),
        ),
    ),
    side=322,
    steps=(200, 600),
    claim=_claim,
    guess=("mode_map", "the usual class of each place"),
    python="(images).argmax(1)",
    predictions="masks",
    pictures=(
        ("test_masks.png", "Test images, their masks, predictions and mistakes."),
        ("iou_by_class.png", "IoU of each class on the test images."),
    ),
    notes=_shares,
)
