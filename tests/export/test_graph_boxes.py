"""Claims about detectors in a graph: without shapes that depend on data, they find the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from datamodules.recipe import Fit, ImageRecipe
from kora.export.graph_boxes import found_boxes, own_boxes
from tests.support.detectors import DETECTORS, detector


def noise(count: int, size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("kind", DETECTORS)
@pytest.mark.parametrize("most", [100, 5])
@torch.no_grad()
def test_the_boxes_are_those_of_the_detector(kind: str, most: int) -> None:
    task = detector(kind, protocol={"max_detections": most, "nms_iou": 0.4})
    head: Any = task.head
    levels: Any = task(noise(3, (32, 32)))
    boxes, scores, labels = found_boxes(head, levels)
    assert boxes.shape[1] <= most
    for row, expected in enumerate(head.detections(levels)):
        there = scores[row] > 0
        assert there.any()
        for name, found in (("boxes", boxes), ("scores", scores), ("labels", labels)):
            torch.testing.assert_close(found[row][there], expected[name], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("fit", ["contain", "stretch", "crop", None])
@torch.no_grad()
def test_they_are_given_in_pixels_of_the_picture(fit: Fit | None) -> None:
    task = detector()
    head: Any = task.head
    recipe = ImageRecipe(fit, None if fit is None else (24, 40))
    for size in ((70, 30), (24, 40), (20, 90)):
        images = noise(2, size)
        levels: Any = task(torch.stack([torch.from_numpy(recipe(image)) for image in images]))
        boxes, scores, labels = own_boxes(head, levels, images, recipe)
        known = task.own_boxes(levels, [recipe.shown(size)] * 2, recipe)
        for row, expected in enumerate(known):
            there = labels[row] >= 0
            assert there.any()
            assert there[: len(expected["scores"])].all()  # those that are none come last
            assert not boxes[row][~there].any()
            assert not scores[row][~there].any()
            torch.testing.assert_close(boxes[row][there], expected["boxes"], rtol=1e-5, atol=1e-4)
            torch.testing.assert_close(scores[row][there], expected["scores"])
