"""Random predicted and true boxes of images, and what the former found."""

from __future__ import annotations

import torch
from torch import Tensor

from kora.metrics.detection import DetectionMetrics
from kora.runs.outcomes import Outcomes, collect

__all__ = ["detections", "kept_of", "measured", "moved"]

Boxes = list[dict[str, Tensor]]


def detections(
    seed: int = 0,
    *,
    images: int = 12,
    classes: int = 3,
    boxes: int = 12,
    noise: float = 6,
    grid: bool = False,
) -> tuple[Boxes, Boxes]:
    """Predictions (`boxes` an image, near true ones) and truths; every fourth image is empty.

    With `grid`, corners are multiples of 10 and scores of 1 / 40, so that IoU and scores are often
    equal. An eighth of the true boxes is a crowd.
    """
    generator = torch.Generator().manual_seed(seed)
    predictions, truths = [], []
    for number in range(images):
        true = torch.rand(number % 4 * 3, 4, generator=generator) * 150
        true[:, 2:] += true[:, :2] + 8
        labels = torch.randint(0, classes, (len(true),), generator=generator)
        crowd = torch.rand(len(true), generator=generator) < 0.125
        other = torch.rand(2, 4, generator=generator) * 100  # near no true box
        other[:, 2:] += other[:, :2] + 8
        near = torch.randint(
            0, max(len(true), 1), (boxes - 2 if len(true) else 0,), generator=generator
        )
        found = moved(torch.cat([true[near], other]), noise, generator)
        label = torch.cat([labels[near], torch.randint(0, classes, (2,), generator=generator)])
        score = torch.rand(len(found), generator=generator)
        if grid:
            true, found = ((each / 10).round() * 10 for each in (true, found))
            true[:, 2:], found[:, 2:] = true[:, 2:] + 10, found[:, 2:] + 10
            score = (score * 40).round() / 40
        predictions.append({"boxes": found, "scores": score, "labels": label})
        truths.append({"boxes": true, "labels": labels, "crowd": crowd})
    return predictions, truths


def moved(boxes: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Boxes with corners that are off by some pixels."""
    found = boxes + noise * torch.randn(boxes.shape, generator=generator)
    found[:, 2:] = torch.maximum(found[:, 2:], found[:, :2] + 1)
    return found


def measured(
    predictions: Boxes, truths: Boxes, *, classes: int = 3, index: Tensor | None = None
) -> DetectionMetrics:
    """The metrics of these images, in one batch, with an index each."""
    metrics = DetectionMetrics(classes)
    metrics.update(predictions, truths, torch.arange(len(truths)) if index is None else index)
    return metrics


def kept_of(metrics: DetectionMetrics) -> Outcomes:
    """The outcomes that a run keeps of them."""
    kept = collect([{name: column.numpy() for name, column in metrics.per_image().items()}])
    assert kept is not None
    return kept
