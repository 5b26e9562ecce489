"""Protocol of a depth evaluation: which pixels and range count, how to average and align.

Shapes: B images, H and W pixels of the truth, h and w of the prediction.
Sources: the Eigen crop and the order resize, clean, clamp are those of BTS (arXiv:1907.10326),
AdaBins (arXiv:2011.14141) and DINOv2 (arXiv:2304.07193).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "DepthProtocol",
    "check_depths",
    "check_split",
    "is_number",
    "known_fields",
    "masked_median",
]

Align = Literal["none", "median", "scale_shift"]
Average = Literal["image", "pixel"]
Crop = Literal["eigen", "none"]

_EIGEN_SIZE = (480, 640)
_EIGEN_CROP = (slice(45, 471), slice(41, 601))
_CHOICES = {"crop": Crop, "average": Average, "align": Align}


@dataclass(frozen=True)
class DepthProtocol:
    """Everything that two depth results must share before they may be compared.

    Args:
        split: Name of the split that the run must use; None leaves it to the data module.
        crop: `eigen` counts rows 45:471 and columns 41:601 of 480x640; `none` counts all.
        min_depth_m: Truths at or below it do not count; predictions are clamped to it. Metres.
        max_depth_m: Truths at or above it do not count; predictions are clamped to it. Metres.
        average: `image` averages each image's value; `pixel` pools the pixels of all images.
        align: `median` scales each prediction to the truth's median, `scale_shift` fits scale and
            shift by least squares. Both use the truth: for relative models, report separately.
        flip_tta: The task averages the prediction with that of the mirrored image.

    Raises:
        ValueError: A field has an invalid value.
    """

    split: str | None = None
    crop: Crop = "eigen"
    min_depth_m: float = 1e-3
    max_depth_m: float = 10.0
    average: Average = "image"
    align: Align = "none"
    flip_tta: bool = False

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in get_args(choices):
                raise ValueError(
                    f"protocol.{name} is {value!r}, expected one of {', '.join(get_args(choices))}."
                )
        for name in ("min_depth_m", "max_depth_m"):
            value = getattr(self, name)
            if not is_number(value):
                raise ValueError(f"protocol.{name} is {value!r}, expected a number of metres.")
        if not 0 < self.min_depth_m < self.max_depth_m < math.inf:
            raise ValueError(
                f"protocol.min_depth_m is {self.min_depth_m} and max_depth_m {self.max_depth_m}; "
                "expected 0 < min_depth_m < max_depth_m, both finite, in metres (logarithms of "
                "depth are taken, so 0 itself cannot count). NYU Depth V2 uses 0.001 and 10."
            )
        if not isinstance(self.flip_tta, bool):
            raise ValueError(f"protocol.flip_tta is {self.flip_tta!r}, expected true or false.")
        check_split(self.split)

    @classmethod
    def preset(cls, name: str) -> DepthProtocol:
        """`eigen`, as published for NYU Depth V2; or `full`, the same without the crop.

        Raises:
            ValueError: Another name.
        """
        if name not in ("eigen", "full"):
            raise ValueError(f"protocol is {name!r}, expected eigen, full, or single fields.")
        return cls(crop="eigen" if name == "eigen" else "none")

    @classmethod
    def read(cls, given: str | dict[str, Any]) -> DepthProtocol:
        """A preset by name, or fields; `preset` among them gives the values of the others.

        Without `preset`, `crop` must be given: otherwise, single fields on top of `protocol: full`
        would silently bring back the Eigen crop.

        Raises:
            ValueError: An unknown preset or field, no crop, or an invalid value.
        """
        if isinstance(given, str):
            return cls.preset(given)
        own = dict(given)
        base = own.pop("preset", None)
        known_fields(cls, own, "preset")
        if base is None and "crop" not in own:
            raise ValueError(
                f"protocol gives {', '.join(own) or 'nothing'}, but neither preset nor crop. "
                "Add protocol.preset (eigen or full); the other fields then change single values."
            )
        return replace(cls() if base is None else cls.preset(base), **own)

    def window(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns that count in maps of this size.

        Raises:
            ValueError: The Eigen crop, which is given in pixels of 480x640, on another size.
        """
        if self.crop == "none":
            return slice(0, height), slice(0, width)
        if (height, width) != _EIGEN_SIZE:
            raise ValueError(
                f"The Eigen crop is defined on depth maps of 480x640 (rows x columns) and these "
                f"are {height}x{width}. Use `protocol: full`, or depth maps of 480x640."
            )
        return _EIGEN_CROP

    def valid(self, target_BHW: Tensor) -> Tensor:
        """Pixels that count, bool (B, H, W): min < truth < max, inside the crop.

        Unmeasured pixels (0) and NaN never count.

        Raises:
            ValueError: The crop does not fit the size.
        """
        window = (..., *self.window(*target_BHW.shape[-2:]))
        inside_BHW = torch.zeros_like(target_BHW, dtype=torch.bool)
        inside_BHW[window] = self.in_range(target_BHW[window])
        return inside_BHW

    def in_range(self, target: Tensor) -> Tensor:
        """Where min < truth < max, bool of the same shape; ignores the crop."""
        return (target > self.min_depth_m) & (target < self.max_depth_m)

    def prepare(self, prediction_Bhw: Tensor, target_BHW: Tensor) -> Tensor:
        """The prediction as it is scored: float32 (B, H, W), metres in [min, max].

        NaN counts as min and infinity as max (before the resize, which would spread them); then
        bilinear resize to the truth's size, alignment if the protocol asks for it, and the clamp.

        Raises:
            ValueError: Shapes or types do not fit.
        """
        check_depths(prediction_Bhw, target_BHW)
        low, high = self.min_depth_m, self.max_depth_m
        depth = prediction_Bhw.float().nan_to_num(nan=low, posinf=high, neginf=low)
        if depth.shape != target_BHW.shape:
            size = (target_BHW.shape[1], target_BHW.shape[2])
            depth = F.interpolate(depth[:, None], size=size, mode="bilinear", align_corners=False)
            depth = depth[:, 0]
        if self.align != "none":
            depth = _ALIGNMENTS[self.align](depth, target_BHW.float(), self.valid(target_BHW))
        return depth.clamp(low, high)

    def to_dict(self) -> dict[str, Any]:
        """The fields in plain types."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {name: float(values[name]) for name in ("min_depth_m", "max_depth_m")}

    def sentence(self) -> str:
        """One line for tables, such as `Eigen crop, 0.001 to 10 m, mean over images, ...`."""
        parts = [
            {"eigen": "Eigen crop", "none": "no crop"}[self.crop],
            f"{self.min_depth_m:g} to {self.max_depth_m:g} m",
            {"image": "mean over images", "pixel": "pooled over pixels"}[self.average],
            {
                "none": "no alignment",
                "median": "aligned by median",
                "scale_shift": "aligned by scale and shift",
            }[self.align],
            "averaged with the mirrored image" if self.flip_tta else "no flip",
        ]
        return ", ".join([*([f"split {self.split}"] if self.split else []), *parts])


def is_number(value: object) -> bool:
    """Whether a field is a number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_split(split: str | None) -> None:
    """Raises ValueError unless the field `split` of a protocol is a name or None."""
    if split is not None and not (isinstance(split, str) and split.strip()):
        raise ValueError(
            f"protocol.split is {split!r}, expected the name of a split, such as 'test', or null "
            "to take what the data module says."
        )


def known_fields(protocol: Any, given: Mapping[str, Any], *others: str) -> None:
    """Raises ValueError if a name is no field of the class of a protocol, nor one of `others`."""
    known = [*others, *(field.name for field in fields(protocol))]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"protocol.{unknown[0]} is no field, expected any of {', '.join(known)}.")


def check_depths(prediction_Bhw: Tensor, target_BHW: Tensor) -> None:
    """Check that both are batches of single-channel depth maps with equally many images.

    Raises:
        ValueError: Says what was found and what is expected.
    """
    for name, depth in (("prediction", prediction_Bhw), ("target", target_BHW)):
        if depth.ndim != 3:
            hint = " Drop the channel: depth[:, 0]." if depth.ndim == 4 else ""
            raise ValueError(
                f"Depth {name} has shape {tuple(depth.shape)}, expected (images, rows, "
                f"columns).{hint}"
            )
        if not depth.is_floating_point():
            raise ValueError(
                f"Depth {name} is {depth.dtype}, expected floating-point metres. Millimetres as "
                "integers become metres with depth.float() / 1000."
            )
    if len(prediction_Bhw) != len(target_BHW):
        raise ValueError(
            f"{len(prediction_Bhw)} depth predictions came with {len(target_BHW)} truths; expected "
            "one for one."
        )


def masked_median(values_BN: Tensor, valid_BN: Tensor) -> Tensor:
    """Median (B,) of each row's valid values, the mean of the middle two of an even count.

    If no entry is valid, some finite value, provided that the entries are finite. By sorting,
    since selection is not deterministic on CUDA; the gradient goes to the middle values.
    """
    order_BN = values_BN.detach().masked_fill(~valid_BN, math.inf).argsort(dim=1)
    last_B = valid_BN.sum(dim=1, keepdim=True) - 1
    middle_B2 = torch.cat([last_B // 2, (last_B + 1) // 2], dim=1).clamp(min=0)
    return values_BN.gather(1, order_BN.gather(1, middle_B2)).mean(dim=1)


def _align_median(depth_BHW: Tensor, target_BHW: Tensor, valid_BHW: Tensor) -> Tensor:
    """Scaled by median(truth) / median(prediction), as in SfMLearner (arXiv:1704.07813).

    A prediction whose median is not positive cannot be scaled and stays as it is.
    """
    valid_BN = valid_BHW.flatten(1)
    predicted_B = masked_median(depth_BHW.flatten(1), valid_BN)
    true_B = masked_median(torch.where(valid_BHW, target_BHW, 1).flatten(1), valid_BN)
    usable_B = valid_BN.any(dim=1) & (predicted_B > 0)
    scale_B = torch.where(usable_B, true_B / torch.where(usable_B, predicted_B, 1), 1)
    return depth_BHW * scale_B[:, None, None]


def _align_scale_shift(depth_BHW: Tensor, target_BHW: Tensor, valid_BHW: Tensor) -> Tensor:
    """a * prediction + b with the least squared error in metres; a is 0 for a constant map."""
    count_B11 = valid_BHW.sum(dim=(1, 2), keepdim=True)
    share_BHW = valid_BHW / count_B11.clamp(min=1)
    true_BHW = torch.where(valid_BHW, target_BHW, 0)
    mean_B11 = (depth_BHW * share_BHW).sum(dim=(1, 2), keepdim=True)
    true_mean_B11 = (true_BHW * share_BHW).sum(dim=(1, 2), keepdim=True)
    centred_BHW = depth_BHW - mean_B11
    weighted_BHW = centred_BHW * share_BHW
    variance_B11 = (weighted_BHW * centred_BHW).sum(dim=(1, 2), keepdim=True)
    covariance_B11 = (weighted_BHW * (true_BHW - true_mean_B11)).sum(dim=(1, 2), keepdim=True)
    # The variance that float32 gives a constant map is rounding noise, not a slope.
    varies = variance_B11 > (1e-6 * mean_B11).square()
    scale_B11 = torch.where(varies, covariance_B11 / torch.where(varies, variance_B11, 1), 0)
    aligned_BHW = centred_BHW * scale_B11 + true_mean_B11
    return torch.where(count_B11 > 0, aligned_BHW, depth_BHW)


_ALIGNMENTS = {"median": _align_median, "scale_shift": _align_scale_shift}
