"""Detection heads: a pyramid on the last patch tokens, and torchvision's detectors on its levels.

Shapes: B images, D width of the backbone, C channels of the pyramid, h and w rows and columns of a
level, K classes, n boxes of an image, A places or anchors of a level
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead as RetinaNetLayers
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from kora.backbone.vit import Backbone, Features
from kora.heads.levels import arguments_of
from kora.metrics.detection_protocol import DetectionProtocol

__all__ = ["DetectionHead", "FCOSHead", "FasterRCNNHead", "RetinaNetHead"]

Boxes = dict[str, Tensor]  # of an image: `boxes` (n, 4), `labels` (n,), and `scores` if predicted

_SCALES = (4.0, 2.0, 1.0, 0.5)  # of a level, relative to the grid of patches
_NORM_GROUPS = 32  # of torchvision's heads
_RATIOS = (0.5, 1.0, 2.0)


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
        assert self.size is None, "build() is called once"
        self.grid, self.size = backbone.grid, backbone.size
        self.pyramid = nn.ModuleList(
            _level(backbone.width, self.channels, scale) for scale in self.scales
        )
        patch = self.size[0] / self.grid[0], self.size[1] / self.grid[1]
        strides = [(patch[0] / scale, patch[1] / scale) for scale in self.scales]
        self.detector = self.make_detector(num_classes, strides, protocol)
        self.detector.transform = _NoTransform()

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

    def _pictures(self, levels: list[Tensor]) -> _Pictures:
        assert self.size is not None
        return _Pictures([level.float() for level in levels], self.size)

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
        return FCOS(
            _Levels(self.channels),
            num_classes,
            anchor_generator=_Anchors(strides, [[(rows, columns)] for rows, columns in strides]),
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
        sides = [
            [(4 * rows * 2 ** (third / 3), 4 * columns * 2 ** (third / 3)) for third in range(3)]
            for rows, columns in strides
        ]
        anchors = _Anchors(strides, [_in_proportions(of_level) for of_level in sides])
        layers = RetinaNetLayers(
            self.channels,
            anchors.num_anchors_per_location()[0],
            num_classes,
            norm_layer=partial(nn.GroupNorm, _NORM_GROUPS),
        )
        return RetinaNet(
            _Levels(self.channels),
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
        sides = [_in_proportions([(8 * rows, 8 * columns)]) for rows, columns in strides]
        pool = MultiScaleRoIAlign([str(n) for n in range(len(strides))], 7, 2)
        # By itself it would round strides to powers of two, and pool beside the boxes.
        pool.scales = [1 / math.sqrt(rows * columns) for rows, columns in strides]
        orders = [round(-math.log2(scale)) for scale in pool.scales]
        pool.map_levels = initLevelMapper(orders[0], orders[-1])
        return FasterRCNN(
            _Levels(self.channels),
            num_classes + self.first_label,
            rpn_anchor_generator=_Anchors(strides, sides),
            box_roi_pool=pool,
            box_score_thresh=protocol.score_threshold,
            box_nms_thresh=protocol.nms_iou,
            box_detections_per_img=protocol.max_detections,
        )


def _level(width: int, channels: int, scale: float) -> nn.Sequential:
    """From the map (B, D, rows, columns) of the patches to a level of the pyramid."""
    halves = [width // 2, width // 4]
    resized: dict[float, list[nn.Module]] = {
        4.0: [
            nn.ConvTranspose2d(width, halves[0], 2, 2),
            LayerNorm2d(halves[0]),
            nn.GELU(),
            nn.ConvTranspose2d(halves[0], halves[1], 2, 2),
        ],
        2.0: [nn.ConvTranspose2d(width, halves[0], 2, 2)],
        1.0: [],
        0.5: [nn.MaxPool2d(2, 2, ceil_mode=True)],
    }
    last = {4.0: halves[1], 2.0: halves[0]}.get(scale, width)
    return nn.Sequential(
        *resized[scale],
        nn.Conv2d(last, channels, 1, bias=False),
        LayerNorm2d(channels),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        LayerNorm2d(channels),
    )


def _in_proportions(sides: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Anchors (height, width) of the same areas in three proportions."""
    return [
        (rows * math.sqrt(ratio), columns / math.sqrt(ratio))
        for ratio in _RATIOS
        for rows, columns in sides
    ]


class _Anchors(AnchorGenerator):  # type: ignore[misc]
    """Anchors of these sizes (height, width) at the centre of each cell of each level.

    torchvision's own ones take strides that are whole numbers of pixels, and lie on the corners.
    """

    def __init__(
        self, strides: list[tuple[float, float]], sizes: list[list[tuple[float, float]]]
    ) -> None:
        super().__init__(((1.0,),) * len(strides), ((1.0,),) * len(strides))
        self.strides = strides
        self.sides = sizes

    def num_anchors_per_location(self) -> list[int]:
        """Anchors at each place of each level."""
        return [len(of_level) for of_level in self.sides]

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """The anchors (A, 4) of all levels, for each image."""
        found = []
        levels = zip(feature_maps, self.strides, self.sides, strict=True)
        for level, (row_stride, column_stride), sizes in levels:
            options: dict[str, Any] = {"dtype": torch.float32, "device": level.device}
            rows_h = (torch.arange(level.shape[-2], **options) + 0.5) * row_stride
            columns_w = (torch.arange(level.shape[-1], **options) + 0.5) * column_stride
            y, x = torch.meshgrid(rows_h, columns_w, indexing="ij")
            centres_A14 = torch.stack([x, y, x, y], dim=-1).view(-1, 1, 4)
            half = torch.tensor([(-w / 2, -h / 2, w / 2, h / 2) for h, w in sizes], **options)
            found.append((centres_A14 + half).view(-1, 4))
        anchors_A4 = torch.cat(found)
        return [anchors_A4] * len(image_list.image_sizes)


class _Pictures(list[Tensor]):
    """What stands for the images in a detector: their sizes, and the levels of the pyramid."""

    def __init__(self, levels: list[Tensor], size: tuple[int, int]) -> None:
        super().__init__([torch.empty(0, *size)] * len(levels[0]))
        self.levels = OrderedDict((str(n), level) for n, level in enumerate(levels))
        self.sizes = [size] * len(levels[0])


class _NoTransform(nn.Module):
    """In the place of the detector's transform: neither images nor boxes change."""

    def forward(self, pictures: _Pictures, truths: Any) -> tuple[ImageList, Any]:
        return ImageList(pictures.levels, pictures.sizes), truths

    def postprocess(self, found: Any, *sizes: Any) -> Any:
        """The detections as they are."""
        return found


class _Levels(nn.Module):
    """In the place of the detector's backbone: passes the levels on."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = channels

    def forward(self, levels: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
        return levels
