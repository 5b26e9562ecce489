"""What every export shares: what it has written, and how it is compared with the run's own model.

Shapes: B images, K classes, H and W pixels at which the backbone runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kora.backbone.vit import Backbone
from kora.export.prepare import load_prepare
from kora.heads import LinearHead
from kora.tasks.load import AdaptedModel

__all__ = [
    "Written",
    "compared",
    "compared_pictures",
    "creation",
    "linear_head",
    "probe_images",
    "probe_pictures",
    "worst",
]

_PROBES = 8


class Written(NamedTuple):
    """What an export has put into its folder."""

    load: tuple[str, ...]  # lines of Python that load it again, with FOLDER for where it lies
    use: tuple[str, ...]  # lines that then give the outputs for a picture
    details: dict[str, Any]  # for export.json
    difference: float | None  # the largest of all outputs on the probe batch; None: not compared
    largest: float  # the largest output there, without its sign
    note: str = ""


def probe_images(backbone: Backbone) -> Tensor:
    """uint8 images (8, 3, H, W), always the same: noise, and slopes of light in six directions."""
    height, width = backbone.size
    return torch.stack([_probe(number, (height, width)) for number in range(_PROBES)])


def probe_pictures(backbone: Backbone) -> list[Tensor]:
    """The same kinds, uint8 (3, H, W), at other sizes: wide, tall, small, large, and just so."""
    height, width = backbone.size
    sizes = ((height, 2 * width), (2 * height + 3, width), (height // 2 + 1, width // 2 + 1),
             (3 * height + 1, 4 * width), (height + 1, width - 1), (height, width))  # fmt: skip
    return [_probe(number, size) for number, size in enumerate(sizes)]


def _probe(number: int, size: tuple[int, int]) -> Tensor:
    height, width = size
    if number < 2:
        noise = torch.Generator().manual_seed(number)
        return torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=noise)
    rows, columns = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)[None]
    angle = torch.tensor(number * 0.8)
    slope = (torch.cos(angle) * rows + torch.sin(angle) * columns).sigmoid() * 255
    return (slope // torch.tensor([1, 2, 3])[:, None, None]).to(torch.uint8)


def compared_pictures(
    model: AdaptedModel, folder: Path, theirs: Callable[[Any], Tensor]
) -> tuple[float, float]:
    """The run's model on pictures of many sizes, and an export behind its own `prepare.py`."""
    prepare = load_prepare(folder)
    found = [
        compared(model(picture[None]), theirs(prepare(picture)))
        for picture in probe_pictures(model.backbone)
    ]
    return worst(found)


def worst(found: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The largest difference, and the largest output, of several comparisons."""
    return max(difference for difference, _ in found), max(largest for _, largest in found)


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
        imports = (*imports, "import kora.backbone.nano  # registers it with timm")
    return tuple(imports), f"timm.create_model('{backbone.name}', {text})"
