"""Protocol of an evaluation of segmentation: what the model sees of an image, and how often."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from kora.metrics.protocol import check_split, is_number, known_fields

__all__ = ["SegmentationProtocol"]

Window = Literal["whole", "slide"]
_MOST_SCALE = 8.0


@dataclass(frozen=True)
class SegmentationProtocol:
    """Everything that two results of segmentation must share before they may be compared.

    Predictions are always scored at the size of the mask in its file, by areas summed over the data
    set. Source of `slide`: the evaluations of DINOv2 (arXiv:2304.07193, section 7.4) and of the
    segmentation library that it uses, with windows of 512 pixels and a stride of 341.

    Args:
        split: Name of the split that the run must use; None leaves it to the data module.
        window: `whole` resizes the image to the size of the backbone; `slide` scales it to cover
            that size, and averages the logits of windows of that size.
        stride: Distance of two windows, as a share of the window; only for `slide`.
        scales: Sizes of the image relative to the first, whose probabilities are averaged; only for
            `slide`.
        flip_tta: Also average with the mirrored image.

    Raises:
        ValueError: A field has an invalid value.
    """

    split: str | None = None
    window: Window = "whole"
    stride: float = 2 / 3
    scales: tuple[float, ...] = (1.0,)
    flip_tta: bool = False

    def __post_init__(self) -> None:
        if self.window not in get_args(Window):
            raise ValueError(f"protocol.window is {self.window!r}, expected whole or slide.")
        if not is_number(self.stride) or not 0 < self.stride <= 1:
            raise ValueError(
                f"protocol.stride is {self.stride!r}, expected a share of the window in (0, 1]."
            )
        listed = isinstance(self.scales, list | tuple) and all(map(is_number, self.scales))
        if not listed or not self.scales or not all(1 <= s <= _MOST_SCALE for s in self.scales):
            raise ValueError(
                f"protocol.scales is {self.scales!r}, expected one or more numbers from 1 to "
                f"{_MOST_SCALE:g}: at 1 the image just covers the window."
            )
        object.__setattr__(self, "scales", tuple(float(scale) for scale in self.scales))
        if self.window == "whole" and self.scales != (1.0,):
            raise ValueError(
                f"protocol.scales is {list(self.scales)}, and window: whole always shows the image "
                "at the size of the backbone. Use window: slide."
            )
        if not isinstance(self.flip_tta, bool):
            raise ValueError(f"protocol.flip_tta is {self.flip_tta!r}, expected true or false.")
        check_split(self.split)

    @classmethod
    def read(cls, given: str | dict[str, Any]) -> SegmentationProtocol:
        """`whole` or `slide`, or fields.

        Raises:
            ValueError: An unknown field, or an invalid value.
        """
        own = {"window": given} if isinstance(given, str) else dict(given)
        known_fields(cls, own)
        return replace(cls(), **own)

    def to_dict(self) -> dict[str, Any]:
        """The fields in plain types."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        plain["scales"] = list(self.scales)
        if self.window == "whole":  # they have no meaning there
            del plain["stride"], plain["scales"]
        return plain

    def sentence(self) -> str:
        """One line for tables, such as `areas summed over the data set, whole image, no flip`."""
        parts = [f"split {self.split}"] if self.split else []
        parts.append("areas summed over the data set at the masks' own size")
        if self.window == "whole":
            parts.append("whole image")
        else:
            parts.append(f"sliding window with a stride of {self.stride:.2g} windows")
            if self.scales != (1.0,):
                parts.append(f"scales {', '.join(f'{scale:g}' for scale in self.scales)}")
        parts.append("averaged with the mirrored image" if self.flip_tta else "no flip")
        return ", ".join(parts)
