"""The DPT heads: four levels of tokens as images of four sizes, fused from coarse to fine.

Shapes: B images, N patch tokens (rows x columns of the grid), D width, C channels, K bins,
F features, h and w height and width.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.backbone.vit import Backbone, Features, Level
from kora.heads.depth import DepthHead, depth_of_bins
from kora.heads.levels import four_blocks
from kora.heads.segmentation import SegmentationHead

__all__ = ["DPTDepth", "DPTSegmentation"]

ReadCls = Literal["project", "add", "ignore"]

_LAST_CHANNELS = 32  # between the last two convolutions, at full resolution


class DPTDepth(DepthHead):
    """Dense prediction transformer: reassemble four levels, fuse them, three convolutions.

    Levels 1 to 4 (`four_blocks`) become images of 4, 2, 1 and 1/2 times the grid. From the coarsest
    on, each is refined by residual convolutions, enlarged to the next one's size and added to it.
    The depth map has 16 pixels along one side of a patch.

    Source: Ranftl et al. 2021, arXiv:2103.13413, section 3, and the code released with it. Unlike
    there, any grid works (odd ones too), 1x1 convolutions come before the upsampling that they
    commute with, and the output is limited to its range.

    Args:
        features: F, channels of the fusion.
        readout: How patches use their level's CLS token: `project` maps both, concatenated, to one
            token; `add` adds CLS; `ignore` leaves it out.
        channels: Channels of the four reassembled images; None takes D/8, D/4, D/2 and D, as the
            paper does for ViT-B.
        bins: K bins from min_depth_m to max_depth_m, averaged as in `LinearDepth`; None makes one
            output, a sigmoid over the range.
        min_depth_m: Nearest depth that the head can predict, in metres.
        max_depth_m: Farthest depth that the head can predict, in metres.
        use_bn: Batch normalisation in the residual convolutions. The released depth models have
            none.

    Raises:
        ValueError: For a number out of range, an unknown readout, or one that reads CLS with a
            backbone that has none.
    """

    reads = ("levels",)  # fields of `Features`; others need not be cached

    def __init__(
        self,
        *,
        features: int = 256,
        readout: ReadCls = "project",
        channels: tuple[int, int, int, int] | None = None,
        bins: int | None = 256,
        min_depth_m: float = 1e-3,
        max_depth_m: float = 10.0,
        use_bn: bool = False,
    ) -> None:
        super().__init__(min_depth_m=min_depth_m, max_depth_m=max_depth_m)
        _check_arguments("DPTDepth", features, readout, channels)
        if bins is not None and bins < 2:
            raise ValueError(
                f"DPTDepth: bins={bins}, expected 2 or more, or null for a sigmoid over the range."
            )
        self.features = features
        self.readout: ReadCls = readout
        self.channels = channels
        self.bins = bins
        self.use_bn = use_bn

    def blocks(self, depth: int) -> tuple[int, ...]:
        """Four equally spaced blocks."""
        return four_blocks(depth)

    def build(self, backbone: Backbone) -> None:
        """Create the convolutions."""
        self._adopt(backbone, without_cls=None if self.readout == "ignore" else "readout: ignore")
        _build(self, backbone.width, self.bins or 1)

    def forward(self, features: Features) -> Tensor:
        """Depth in metres, float32 (B, 16 * rows, 16 * columns)."""
        x_BKhw = _fused(self, features, self._check(features, 4))
        limits = (self.min_depth_m, self.max_depth_m)
        if self.bins is not None:
            return depth_of_bins(x_BKhw, min_depth_m=limits[0], max_depth_m=limits[1])
        share_Bhw = x_BKhw[:, 0].float().sigmoid()
        return (limits[0] + (limits[1] - limits[0]) * share_Bhw).clamp(*limits)


class DPTSegmentation(SegmentationHead):
    """`DPTDepth` with one output a class: logits of 16 pixels along one side of a patch.

    Source: Ranftl et al. 2021, arXiv:2103.13413, sections 3 and 4.2.

    Args:
        features: F, channels of the fusion.
        readout: As for `DPTDepth`.
        channels: As for `DPTDepth`.
        use_bn: Batch normalisation in the residual convolutions, as the released segmentation
            models have.
        dropout: Probability with which whole channels are dropped before the last convolution, in
            training.

    Raises:
        ValueError: For a number out of range, an unknown readout, or one that reads CLS with a
            backbone that has none.
    """

    reads = ("levels",)
    suffix = "-DPT"

    def __init__(
        self,
        *,
        features: int = 256,
        readout: ReadCls = "project",
        channels: tuple[int, int, int, int] | None = None,
        use_bn: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        _check_arguments("DPTSegmentation", features, readout, channels)
        if not 0 <= dropout < 1:
            raise ValueError(
                f"DPTSegmentation: dropout={dropout}, expected a probability in [0, 1)."
            )
        self.features = features
        self.readout: ReadCls = readout
        self.channels = channels
        self.use_bn = use_bn
        self.dropout = dropout

    def blocks(self, depth: int) -> tuple[int, ...]:
        """Four equally spaced blocks."""
        return four_blocks(depth)

    def build(self, backbone: Backbone, num_classes: int, composed: int | None = None) -> None:
        """Create the convolutions."""
        avoiding = None if self.readout == "ignore" else "readout: ignore"
        self._adopt(backbone, without_cls=avoiding)
        _build(self, backbone.width, num_classes)

    def forward(self, features: Features) -> Tensor:
        """Logits (B, K, 16 * rows, 16 * columns)."""
        return _fused(self, features, self._check(features, 4), dropout=self.dropout)


def _check_arguments(
    head: str, features: int, readout: str, channels: tuple[int, ...] | None
) -> None:
    if features < 2:
        raise ValueError(f"{head}: features={features}, expected 2 or more (256 is usual).")
    if readout not in get_args(ReadCls):
        raise ValueError(
            f"{head}: readout='{readout}', expected one of {', '.join(get_args(ReadCls))}."
        )
    if channels is not None and (len(channels) != 4 or min(channels) < 1):
        raise ValueError(
            f"{head}: channels={channels}, expected four numbers of 1 or more, or null for an "
            "eighth, a quarter, a half and all of the backbone's width."
        )


def _build(head: Any, width: int, outputs: int) -> None:
    """Create the parts of a DPT head, which holds its arguments."""
    features = head.features
    channels = head.channels or tuple(max(1, width // part) for part in (8, 4, 2, 1))
    resizes = [_enlarge(channels[0], 4), _enlarge(channels[1], 2), nn.Identity()]
    resizes.append(nn.Conv2d(channels[3], channels[3], 3, stride=2, padding=1))
    head.reassemble = nn.ModuleList(
        _Reassemble(width, count, features, head.readout, resize)
        for count, resize in zip(channels, resizes, strict=True)
    )
    head.fuse = nn.ModuleList(
        _Fuse(features, use_bn=head.use_bn, coarsest=number == 3) for number in range(4)
    )
    head.conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
    head.conv2 = nn.Conv2d(features // 2, _LAST_CHANNELS, 3, padding=1)
    head.conv3 = nn.Conv2d(_LAST_CHANNELS, outputs, 1)


def _fused(head: Any, features: Features, grid: tuple[int, int], *, dropout: float = 0.0) -> Tensor:
    """What the last convolution gives, (B, K, 16 * rows, 16 * columns)."""
    images = [
        reassemble(level, grid)
        for reassemble, level in zip(head.reassemble, features.levels, strict=True)
    ]
    rows, columns = images[0].shape[-2:]
    sizes = [(2 * rows, 2 * columns), *(tuple(image.shape[-2:]) for image in images[:3])]
    fused: Tensor | None = None
    for number in (3, 2, 1, 0):
        fused = head.fuse[number](images[number], fused, sizes[number])
    x = F.interpolate(head.conv1(fused), scale_factor=2, mode="bilinear", align_corners=False)
    x = head.conv2(x).relu()
    if dropout:
        x = F.dropout2d(x, dropout, head.training)
    x_BKhw: Tensor = head.conv3(x)
    return x_BKhw


class _Reassemble(nn.Module):
    """Tokens of one level to an image of F channels, at the size that `resize` makes."""

    def __init__(
        self, width: int, channels: int, features: int, readout: ReadCls, resize: nn.Module
    ) -> None:
        super().__init__()
        self.readout = readout
        self.read = nn.Linear(2 * width, width) if readout == "project" else None
        self.project = nn.Conv2d(width, channels, 1)
        self.resize = resize
        self.narrow = nn.Conv2d(channels, features, 3, padding=1, bias=False)

    def forward(self, level: Level, grid: tuple[int, int]) -> Tensor:
        x_BND = level.patches
        if self.read is not None:  # of [patch; CLS], whose second half is the same for all patches
            of_patch_DD, of_cls_DD = self.read.weight.chunk(2, dim=1)
            cls_B1D = F.linear(level.prefix[:, :1], of_cls_DD, self.read.bias)
            x_BND = F.gelu(F.linear(x_BND, of_patch_DD) + cls_B1D)
        elif self.readout == "add":
            x_BND = x_BND + level.prefix[:, :1]
        # A view: the memory stays channels-last.
        x_BDhw = torch.unflatten(x_BND, 1, grid).permute(0, 3, 1, 2)
        image: Tensor = self.narrow(self.resize(self.project(x_BDhw)))
        return image


class _Fuse(nn.Module):
    """Adds the refined image of a level to what comes from the coarser ones, and enlarges it."""

    def __init__(self, features: int, *, use_bn: bool, coarsest: bool) -> None:
        super().__init__()
        # The coarsest has nothing to be added to: its parameters would get no gradient.
        self.refine_level = None if coarsest else _Residual(features, use_bn=use_bn)
        self.refine_sum = _Residual(features, use_bn=use_bn)
        self.project = nn.Conv2d(features, features, 1)

    def forward(self, image: Tensor, coarser: Tensor | None, size: tuple[int, int]) -> Tensor:
        if self.refine_level is not None:
            assert coarser is not None
            image = coarser + self.refine_level(image)
        image = self.project(self.refine_sum(image))
        return F.interpolate(image, size, mode="bilinear", align_corners=True)


class _Residual(nn.Module):
    """x + two 3x3 convolutions of x, each after a relu."""

    def __init__(self, features: int, *, use_bn: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.ReLU(), nn.Conv2d(features, features, 3, padding=1, bias=not use_bn)]
            layers += [nn.BatchNorm2d(features)] if use_bn else []
        self.inner = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        refined: Tensor = x + self.inner(x)
        return refined


def _enlarge(channels: int, times: int) -> nn.Module:
    """A transposed convolution whose windows do not overlap."""
    return nn.ConvTranspose2d(channels, channels, times, stride=times)
