"""`kora adapt` for images with boxes of objects: what is tried, and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datamodules import DetectionFolder
from datamodules.detection.layouts import find_layout
from kora.adaptation.candidates import Candidate
from kora.adaptation.result import AdaptedBoxes
from kora.adaptation.trials import Kind
from kora.reports.audit_detection import DetectionAudit
from kora.reports.detection import DetectionReport
from kora.tasks import DetectionTask
from kora.training.batched_fit import Setting

__all__ = ["BOXES"]

_MOST_LISTED = 30  # classes


def _images(place: Path) -> Path:
    sources = find_layout(place).sources
    return next(
        sources[name].images for name in sorted(sources) if not name.lower().startswith("test")
    )


def _options(place: Path) -> dict[str, str]:
    """The part that validates, if the folder has one besides a test part."""
    parts = sorted(find_layout(place).parts, key=len)
    val = next((name for name in parts if name.lower().startswith("val")), None)
    has_test = any(name.lower().startswith("test") for name in parts)
    return {"val_dir": val} if has_test and val is not None else {}


def _claim(names: Sequence[str], score: str) -> str:
    of = f"the class {names[0]}" if len(names) == 1 else f"{len(names)} classes"
    return f"finds objects of {of} with a mean average precision of {score}"


def _counts(audit: DetectionAudit) -> list[str]:
    train = audit.splits["train"]
    order = (-train.boxes).argsort(kind="stable")[:_MOST_LISTED].tolist()
    listed = ", ".join(f"{audit.class_names[k]} {int(train.boxes[k]):,}" for k in order)
    return [
        f"Training boxes: {listed}.",
        f"Of the training boxes, {train.small:,} are small (below 32 x 32 pixels), "
        f"{train.medium:,} medium (below 96 x 96) and {train.large:,} large.",
        f"{train.empty:,} of {train.images:,} training images show no object.",
    ]


BOXES = Kind(
    task=DetectionTask,
    data=DetectionFolder,
    report=DetectionReport,
    result=AdaptedBoxes,
    metric="map",
    column="mAP",
    layouts={
        "coco": "boxes in COCO json",
        "voc": "boxes in Pascal VOC XML",
        "yolo": "boxes in YOLO txt",
        "instances": "boxes around instance masks",
    },
    images=_images,
    options=_options,
    # A quarter of the time of 128 channels.
    model={"head": {"class_path": "kora.heads.FCOSHead", "init_args": {"channels": 64}}},
    cached=(
        Candidate(
            "LinearProbe",
            ("adapters/linear_probe",),
            "a pyramid and FCOS on the frozen tokens",
            tuple(Setting(rate, rate) for rate in (1e-3, 3e-4, 3e-3)),
        ),
    ),
    on_images=(
        Candidate(
            "LoRA",
            ("adapters/lora",),
            "LoRA under the same head",
            (Setting(1e-3, 1e-3), Setting(1e-3, 3e-3)),
        ),
        Candidate(
            "KoRA-refined-spatial-tokens",
            ("adapters/matched/small_300k/kora_refined_spatial_tokens",),
            "composed beside the backbone for each token",
            (Setting(1e-3, 1e-3), Setting(1e-3, 3e-3)),
        ),
        Candidate(
            "Adapter+",
            ("adapters/adapter_plus",),
            "a bottleneck behind every block",
            (Setting(1e-3, 1e-3), Setting(1e-3, 3e-3)),
        ),
    ),
    side=322,
    steps=(300, 800),
    claim=_claim,
    guess=("usual_boxes", "the usual boxes of each class"),
    python='.detect("new.jpg")',
    predictions="predictions",
    pictures=(
        ("test_boxes.png", "Test images, their boxes and the predicted ones."),
        ("ap_by_class.png", "Average precision of each class on the test images."),
    ),
    notes=_counts,
)
