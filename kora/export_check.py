"""What every export shares: what it has written, and how it is compared with the run's own model.

Shapes: B images, K classes, H and W pixels at which the backbone runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kora.backbones import Backbone
from kora.heads import LinearHead
from kora.load import AdaptedModel

__all__ = ["Written", "compared", "creation", "linear_head", "probe_images"]

_PROBES = 8


class Written(NamedTuple):
    """What an export has put into its folder."""

    load: tuple[str, ...]  # lines of Python that load it again, with FOLDER for where it lies
    details: dict[str, Any]  # for export.json
    difference: float | None  # the largest of all outputs on the probe batch; None: not compared
    largest: float  # the largest output there, without its sign
    note: str = ""


def probe_images(backbone: Backbone) -> Tensor:
    """uint8 images (8, 3, H, W), always the same: noise, and slopes of light in six directions."""
    height, width = backbone.size
    noise = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (_PROBES, 3, height, width), dtype=torch.uint8, generator=noise)
    rows, columns = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)[None]
    for number in range(2, _PROBES):
        angle = torch.tensor(number * 0.8)
        slope = (torch.cos(angle) * rows + torch.sin(angle) * columns).sigmoid() * 255
        images[number] = slope.to(torch.uint8) // torch.tensor([1, 2, 3])[:, None, None]
    return images


def compared(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """The largest difference of two outputs, and the largest of ours; infinite where one is NaN."""
    if ours.shape != theirs.shape:
        raise RuntimeError(
            f"The export gives outputs of shape {tuple(theirs.shape)}, the model of the run "
            f"{tuple(ours.shape)}. This is a fault of kora; please report it."
        )
    difference = (ours.float() - theirs.float()).abs().max().item()
    return (difference if difference == difference else float("inf")), ours.abs().max().item()


def linear_head(model: AdaptedModel, form: str) -> LinearHead:
    """The head, where timm's classifier can take its place.

    Raises:
        ValueError: If it is of another kind.
    """
    if not isinstance(model.head, LinearHead):
        kind = type(model.head).__name__
        raise ValueError(
            f"--format {form} puts the head into timm's classifier, and {kind} "
            "of this run is no classifier. Use --format onnx, or kora.load_adapter."
        )
    if model.head.reads != ("pooled",):
        raise ValueError(
            f"--format {form} puts the head into timm's classifier, which reads the pooled vector "
            f"alone, and the head of this run reads {' and '.join(model.head.reads)}. Use --format "
            "onnx, or kora.load_adapter."
        )
    return model.head


def creation(backbone: Backbone, num_classes: int) -> tuple[tuple[str, ...], str]:
    """Imports, and the call of timm, that make the plain model in which an export is loaded."""
    arguments: Mapping[str, Any] = {"num_classes": num_classes}
    own = backbone.model.pretrained_cfg["input_size"][-2:]
    if list(backbone.size) != list(own):
        arguments = {**arguments, "img_size": backbone.size}
    text = ", ".join(f"{key}={value}" for key, value in arguments.items())
    imports: Sequence[str] = ("import timm",)
    if backbone.name.partition(".")[0] == "vit_nano":
        imports = (*imports, "import kora.vit_nano  # registers it with timm")
    return tuple(imports), f"timm.create_model('{backbone.name}', {text})"
