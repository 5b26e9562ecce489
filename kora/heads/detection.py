"""Detection heads: a pyramid on the last patch tokens, and torchvision's detectors on its levels.

Shapes: B images, D width of the backbone, C channels of the pyramid, h and w rows and columns of a
level, K classes, n boxes of an image, A places or anchors of a level
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kora.backbone.vit import Backbone, Features
from kora.heads.levels import arguments_of
from kora.metrics.detection_protocol import DetectionProtocol

__all__ = ["DetectionHead", "FCOSHead", "FasterRCNNHead", "RetinaNetHead"]

Boxes = dict[str, Tensor]  # of an image: `boxes` (n, 4), `labels` (n,), and `scores` if predicted

_SCALES = (4.0, 2.0, 1.0, 0.5)  # of a level, relative to the grid of patches
_NORM_GROUPS = 32  # of torchvision's heads


class DetectionHead(nn.Module, ABC):
    """From the patch tokens of the last block to boxes, their classes and scores.

    A simple feature pyramid enlarges and shrinks the last tokens, and one of torchvision's
    detectors reads its levels. Images come normalised by the backbone, so the detector does not
    normalise or resize them again.
    Source of the pyramid: Li et al. 2022 (ViTDet), arXiv:2203.16527, section 3.

    Args:
        channels: C, a multiple of 32.
        scales: Sizes of the levels relative to the grid of patches, descending, of 4, 2, 1 and 0.5.

    Raises:
        ValueError: For other channels or scales.
    """

    reads = ("levels",)  # fields of `Features`; others need not be cached

    #: What the name of a run adds for this head.
    suffix = ""
    #: Number of the first class in the detector: 1 if its 0 is the background.
    first_label = 0

    def __init__(self, *, channels: int, scales: Sequence[float]) -> None:
        super().__init__()
        name = type(self).__name__
        if channels < _NORM_GROUPS or channels % _NORM_GROUPS:
            raise ValueError(
                f"{name}: channels={channels}, expected a multiple of {_NORM_GROUPS}: the channels "
                "are normalised in groups."
            )
        given = [float(scale) for scale in scales]
        if not given or given != sorted(set(given) & set(_SCALES), reverse=True):
            raise ValueError(
                f"{name}: scales={list(scales)}, expected some of 4, 2, 1 and 0.5, descending."
            )
        self.channels = channels
        self.scales = tuple(given)
        self.size: tuple[int, int] | None = None

    def blocks(self, depth: int) -> tuple[int, ...]:
        """The last block."""
        return (depth - 1,)

    def build(self, backbone: Backbone, num_classes: int, protocol: DetectionProtocol) -> None:
        """Create the pyramid, and the detector for K classes."""
        from kora.heads.detectors import NoTransform, pyramid_level

        assert self.size is None, "build() is called once"
        self.grid, self.size = backbone.grid, backbone.size
        self.pyramid = nn.ModuleList(
            pyramid_level(backbone.width, self.channels, scale) for scale in self.scales
        )
        patch = self.size[0] / self.grid[0], self.size[1] / self.grid[1]
        strides = [(patch[0] / scale, patch[1] / scale) for scale in self.scales]
        self.detector = self.make_detector(num_classes, strides, protocol)
        self.detector.transform = NoTransform()

    @abstractmethod
    def make_detector(
        self, num_classes: int, strides: list[tuple[float, float]], protocol: DetectionProtocol
    ) -> Any:
        """The detector of torchvision, for levels of these strides (rows, columns) in pixels."""

    def forward(self, features: Features) -> list[Tensor]:
        """The levels (B, C, h, w) of the pyramid, which `losses` and `detections` read."""
        assert self.size is not None, "build() comes first"
        tokens_BDN = features.levels[0].patches.mT
        tokens_BDhw = torch.unflatten(tokens_BDN, -1, self.grid)
        return [level(tokens_BDhw) for level in self.pyramid]

    def losses(self, levels: list[Tensor], truths: Sequence[Boxes]) -> dict[str, Tensor]:
        """The detector's losses, by name, for `boxes` (n, 4) and `labels` (n,) of each image.

        Boxes are x1, y1, x2, y2 in pixels of the backbone's input. In training mode only.
        """
        shifted = [
            {"boxes": truth["boxes"], "labels": truth["labels"] + self.first_label}
            for truth in truths
        ]
        found: dict[str, Tensor] = self.detector(self._pictures(levels), shifted)
        return found

    def detections(self, levels: list[Tensor]) -> list[Boxes]:
        """Of each image `boxes` (n, 4), `scores` (n,) and `labels` (n,), the best first.

        Boxes are in pixels of the backbone's input, after suppression. In evaluation mode only.
        """
        found: list[Boxes] = self.detector(self._pictures(levels))
        return [{**one, "labels": one["labels"] - self.first_label} for one in found]

    def _pictures(self, levels: list[Tensor]) -> list[Tensor]:
        from kora.heads.detectors import Pictures

        assert self.size is not None
        return Pictures([level.float() for level in levels], self.size)

    def extra_repr(self) -> str:
        return arguments_of(self)


class FCOSHead(DetectionHead):
    """FCOS: each place of each level says its class, its distances to a box, and how central it is.

    It has no anchors. A level is responsible for boxes of 4 to 8 times its stride.
    Source: Tian et al. 2019, arXiv:1904.01355; torchvision's `FCOS`.

    Args:
        channels: C, a multiple of 32.
        scales: Sizes of the levels relative to the grid of patches, descending, of 4, 2, 1 and 0.5.
            The finest level takes most of the time; without 4 its stride is half a patch, about
            the 8 pixels of the paper.

    Raises:
        ValueError: For other channels or scales.
    """

    def __init__(self, *, channels: int = 256, scales: tuple[float, ...] = (2.0, 1.0, 0.5)) -> None:
        super().__init__(channels=channels, scales=scales)

    def make_detector(
        self, num_classes: int, strides: list[tuple[float, float]], protocol: DetectionProtocol
    ) -> Any:
        """FCOS with a place at the centre of each cell."""
        from torchvision.models.detection import FCOS

        from kora.heads.detectors import Anchors, Levels

        return FCOS(
            Levels(self.channels),
            num_classes,
            anchor_generator=Anchors(strides, [[(rows, columns)] for rows, columns in strides]),
            score_thresh=protocol.score_threshold,
            nms_thresh=protocol.nms_iou,
            detections_per_img=protocol.max_detections,
        )


class RetinaNetHead(DetectionHead):
    """RetinaNet: nine anchors at each place of each level, classified with the focal loss.

    Source: Lin et al. 2017, arXiv:1708.02002; torchvision's `RetinaNet`, with group norms.

    Args:
        channels: C, a multiple of 32.
        scales: Sizes of the levels relative to the grid of patches, descending, of 4, 2, 1 and 0.5.

    Raises:
        ValueError: For other channels or scales.
    """

    suffix = "-RetinaNet"

    def __init__(self, *, channels: int = 256, scales: tuple[float, ...] = (2.0, 1.0, 0.5)) -> None:
        super().__init__(channels=channels, scales=scales)

    def make_detector(
        self, num_classes: int, strides: list[tuple[float, float]], protocol: DetectionProtocol
    ) -> Any:
        """RetinaNet with anchors of 4, 5 and 6.3 strides in three proportions."""
        from torchvision.models.detection import RetinaNet
        from torchvision.models.detection.retinanet import RetinaNetHead as RetinaNetLayers

        from kora.heads.detectors import Anchors, Levels, in_proportions

        sides = [
            [(4 * rows * 2 ** (third / 3), 4 * columns * 2 ** (third / 3)) for third in range(3)]
            for rows, columns in strides
        ]
        anchors = Anchors(strides, [in_proportions(of_level) for of_level in sides])
        layers = RetinaNetLayers(
            self.channels,
            anchors.num_anchors_per_location()[0],
            num_classes,
            norm_layer=partial(nn.GroupNorm, _NORM_GROUPS),
        )
        return RetinaNet(
            Levels(self.channels),
            num_classes,
            anchor_generator=anchors,
            head=layers,
            score_thresh=protocol.score_threshold,
            nms_thresh=protocol.nms_iou,
            detections_per_img=protocol.max_detections,
        )


class FasterRCNNHead(DetectionHead):
    """Faster R-CNN: proposals from three anchors at each place, then a second look at each.

    Source: Ren et al. 2015, arXiv:1506.01497; torchvision's `FasterRCNN`.

    Args:
        channels: C, a multiple of 32.
        scales: Sizes of the levels relative to the grid of patches, descending, of 4, 2, 1 and 0.5.

    Raises:
        ValueError: For other channels or scales.
    """

    suffix = "-FasterRCNN"
    first_label = 1

    def __init__(
        self, *, channels: int = 256, scales: tuple[float, ...] = (4.0, 2.0, 1.0, 0.5)
    ) -> None:
        super().__init__(channels=channels, scales=scales)

    def make_detector(
        self, num_classes: int, strides: list[tuple[float, float]], protocol: DetectionProtocol
    ) -> Any:
        """Faster R-CNN with anchors of 8 strides; boxes are pooled at the true strides."""
        from torchvision.models.detection import FasterRCNN
        from torchvision.ops import MultiScaleRoIAlign
        from torchvision.ops.poolers import initLevelMapper

        from kora.heads.detectors import Anchors, Levels, in_proportions

        sides = [in_proportions([(8 * rows, 8 * columns)]) for rows, columns in strides]
        pool = MultiScaleRoIAlign([str(n) for n in range(len(strides))], 7, 2)
        # By itself it would round strides to powers of two, and pool beside the boxes.
        pool.scales = [1 / math.sqrt(rows * columns) for rows, columns in strides]
        orders = [round(-math.log2(scale)) for scale in pool.scales]
        pool.map_levels = initLevelMapper(orders[0], orders[-1])
        return FasterRCNN(
            Levels(self.channels),
            num_classes + self.first_label,
            rpn_anchor_generator=Anchors(strides, sides),
            box_roi_pool=pool,
            box_score_thresh=protocol.score_threshold,
            box_nms_thresh=protocol.nms_iou,
            box_detections_per_img=protocol.max_detections,
        )
