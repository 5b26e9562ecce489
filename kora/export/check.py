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
from kora.heads.detection import Boxes
from kora.tasks.load import AdaptedModel

__all__ = [
    "Written",
    "compared",
    "compared_boxes",
    "compared_pictures",
    "creation",
    "linear_head",
    "probe_pictures",
    "worst",
]


_NEAR = 1e-3  # of a score
_ONE_IN = 10  # boxes may be on one side alone


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
    model: AdaptedModel,
    folder: Path,
    theirs: Callable[[Any], Any],
    compare: Callable[[Any, Any], tuple[float, float]] | None = None,
) -> tuple[float, float]:
    """Compare the run's model with an export and its `prepare.py`, on pictures of many sizes."""
    prepare = runpy.run_path(str(folder / PREPARE))["prepare"]
    found = [
        (compare or compared)(model(picture[None]), theirs(prepare(picture)))
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


def compared_boxes(
    ours: Sequence[Boxes], theirs: Sequence[Tensor], *, least: float
) -> tuple[float, float]:
    """The largest difference between a box and the most similar one of the other side.

    And the highest score of `ours`, which is 0 if there was no box to compare.

    It is that of the scores, or of the corners as a share of the largest one of the image. Two
    boxes may be missing if their scores are within 0.001 of the lowest one of the other side, or of
    `least`, below which none is kept: there, rounding decides which is. So may one box in ten of
    all: rounding also decides which of two overlapping proposals of nearly the same score stays.
    """
    found, scores = [0.0], [0.0]
    for row, mine in enumerate(ours):
        scores += mine["scores"].tolist()
        there = theirs[2][row] >= 0
        names = ("boxes", "scores", "labels")
        other = {name: part[row][there] for name, part in zip(names, theirs, strict=True)}
        farthest = max([1.0, *mine["boxes"].flatten().tolist()])
        for one, two in ((mine, other), (other, mine)):
            corners_nm = (one["boxes"][:, None] - two["boxes"]).abs().amax(dim=-1) / farthest
            differs_nm = corners_nm.maximum((one["scores"][:, None] - two["scores"]).abs())
            differs_nm[one["labels"][:, None] != two["labels"]] = float("inf")
            nobody_n1 = torch.full((len(one["labels"]), 1), float("inf"))
            differs_n = torch.cat([differs_nm, nobody_n1], dim=1).amin(dim=1)
            lowest_2 = torch.tensor([least, *two["scores"].sort().values[:1].tolist()])
            near_n = ((one["scores"][:, None] - lowest_2).abs() <= _NEAR).any(dim=1)
            missing_n = near_n & (differs_n > _NEAR)
            if int(missing_n.sum()) <= 2:
                differs_n = differs_n[~missing_n]
            found += differs_n.tolist()
    alone = [difference for difference in found if difference > _NEAR]
    if len(alone) <= len(found) // _ONE_IN:
        found = [difference for difference in found if difference <= _NEAR]
    return max(found), max(scores)


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
