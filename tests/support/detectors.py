"""Small detectors with random numbers that find boxes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from kora.adapters import Strategy
from kora.backbone.vit import Backbone
from kora.heads import DetectionHead, FasterRCNNHead, FCOSHead, RetinaNetHead
from kora.tasks import DetectionTask
from tests.support.factory import kick

__all__ = ["DETECTORS", "NAMES", "detector"]

NAMES = ["cat", "dog", "elk"]

#: A small head of each kind, by the detector's name.
DETECTORS: dict[str, Callable[[], DetectionHead]] = {
    "FCOS": lambda: FCOSHead(channels=32, scales=(1.0, 0.5)),
    "RetinaNet": lambda: RetinaNetHead(channels=32, scales=(1.0,)),
    "FasterRCNN": lambda: FasterRCNNHead(channels=32, scales=(1.0, 0.5)),
}


def detector(
    kind: str = "FCOS",
    adapter: Strategy | None = None,
    *,
    backbone: Backbone | None = None,
    surer: float = 0.5,
    **options: Any,
) -> DetectionTask:
    """A built task of three classes in eval mode; `surer` raises the logits of the classes."""
    torch.manual_seed(2)
    options = {"num_classes": len(NAMES), **options}
    backbone = Backbone("vit_nano", image_size=32) if backbone is None else backbone
    task = DetectionTask(backbone, adapter, head=DETECTORS[kind](), **options)
    task.build()
    kick(task)
    with torch.no_grad():
        for name, parameter in task.trainables().items():
            if name.endswith("cls_logits.bias"):
                parameter += surer
    return task.eval()
