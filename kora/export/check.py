"""Shared by all exports: what was written, and the comparison with the run's own model.

Shapes: B images, K classes, H and W pixels at which the backbone runs.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kora.backbone.vit import Backbone
from kora.export.prepare import PREPARE
from kora.heads import LinearHead
from kora.tasks.load import AdaptedModel

__all__ = [
    "Written",
    "compared",
    "compared_pictures",
    "creation",
    "linear_head",
    "probe_pictures",
    "worst",
]


class Written(NamedTuple):
    """What an export has written into its folder."""

    load: tuple[str, ...]  # lines of Python that load it; FOLDER stands for its folder
    use: tuple[str, ...]  # lines that then compute the outputs for a picture
    details: dict[str, Any]  # for export.json
    difference: float | None  # the largest one of outputs on the probe images; None: not compared
    largest: float  # the largest absolute output there


def probe_pictures(backbone: Backbone) -> list[Tensor]:
    """uint8 pictures (3, H, W), always the same: wide, tall, small, large, and of the right size.

    Two are noise, the others gradients of brightness in four directions.
    """
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
    """Compare the run's model with an export and its `prepare.py`, on pictures of many sizes."""
    prepare = runpy.run_path(str(folder / PREPARE))["prepare"]
    found = [
        compared(model(picture[None]), theirs(prepare(picture)))
        for picture in probe_pictures(model.backbone)
    ]
    return worst(found)


def worst(found: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The largest difference, and the largest output, of several comparisons."""
    return max(difference for difference, _ in found), max(largest for _, largest in found)


def compared(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """The largest difference of two outputs (infinite if one is NaN), and the largest of `ours`."""
    assert ours.shape == theirs.shape, f"shapes of outputs: {ours.shape}, exported {theirs.shape}"
    difference = (ours.float() - theirs.float()).abs().max().item()
    return (difference if difference == difference else float("inf")), ours.abs().max().item()


def linear_head(model: AdaptedModel, form: str) -> LinearHead:
    """The head, if timm's classifier can take its place.

    Raises:
        ValueError: It cannot.
    """
    if not isinstance(model.head, LinearHead) or model.head.reads != ("pooled",):
        kind = type(model.head).__name__
        raise ValueError(
            f"--format {form} puts the head into timm's classifier, but {kind} of this run is not "
            "a classifier of the pooled vector alone. Use --format onnx, or kora.load_adapter."
        )
    return model.head


def creation(backbone: Backbone, num_classes: int) -> tuple[tuple[str, ...], str]:
    """Imports and the timm call that make the plain model into which an export is loaded."""
    own = tuple(backbone.model.pretrained_cfg["input_size"][-2:])
    size = "" if backbone.size == own else f", img_size={backbone.size}"
    imports: tuple[str, ...] = ("import timm",)
    if backbone.name.partition(".")[0] == "vit_nano":
        imports += ("import kora.backbone.nano  # registers it with timm",)
    return imports, f"timm.create_model('{backbone.name}', num_classes={num_classes}{size})"
