"""Claims about the pictures of detected boxes."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from kora.export.box_files import drawn
from kora.reports.palette import palette_of

BOXES = {
    "boxes": torch.tensor([[20.0, 30, 120, 90], [10, 100, 60, 140], [0, 0, 200, 160]]),
    "scores": torch.tensor([0.9, 0.31, 0.29]),
    "labels": torch.tensor([1, 0, 2]),
}
NAMES = ["cat", "dog", "elk"]


def test_boxes_have_the_colour_of_their_class_and_unsure_ones_are_left_out() -> None:
    picture = Image.new("RGB", (200, 160), "white")
    pixels = np.asarray(drawn(picture, BOXES, NAMES))
    cat, dog, elk = palette_of(3)
    assert tuple(pixels[60, 20]) == tuple(pixels[60, 120]) == tuple(pixels[90, 70]) == dog
    assert tuple(pixels[120, 10]) == cat
    assert not (pixels == elk).all(axis=-1).any()
    assert np.asarray(picture).min() == 255  # the given one stays


def test_a_large_picture_becomes_smaller_with_its_boxes() -> None:
    boxes = {**BOXES, "boxes": BOXES["boxes"] * 20}
    made = drawn(Image.new("RGB", (4000, 3200)), boxes, NAMES)
    assert made.size == (1600, 1280)
    assert made.getpixel((20 * 8, 60 * 8)) == palette_of(3)[1]
