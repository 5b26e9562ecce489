"""Scenes and protocols for depth metrics."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from kora.metrics.depth import DepthMetrics
from kora.metrics.protocol import DepthProtocol

FULL = DepthProtocol.preset("full")


PIXEL = replace(FULL, average="pixel")


def scenes(images: int, *, seed: int = 0, size: tuple[int, int] = (12, 16)) -> Any:
    """Predictions and truths, metres; a fifth of the pixels not measured, a tenth too far."""
    generator = torch.Generator().manual_seed(seed)
    truth = 0.3 + 10.8 * torch.rand(images, *size, generator=generator)
    truth[torch.rand(truth.shape, generator=generator) < 0.2] = 0
    noise = 0.3 * torch.randn(truth.shape, generator=generator)
    return (truth + 0.01) * noise.exp(), truth


def values(metrics: DepthMetrics) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.compute().items()}
