"""Claims about the pictures of detection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kora.reports.figures_detection import box_grid
from kora.reports.palette import palette_of


def drawn(out: Path, *, score: float, label: int = 0) -> Any:
    images = [np.full((3, 60, 80), 128, np.uint8), np.full((3, 80, 40), 128, np.uint8)]
    box = np.array([[10.0, 20, 30, 50]])
    truth = {"boxes": box, "labels": np.array([0])}
    guess = {"boxes": box, "labels": np.array([label]), "scores": np.array([score])}
    path = box_grid(images, [truth] * 2, [guess] * 2, out / "boxes.png", names=["cat", "$dog"])
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def painted(pixels: Any, label: int, half: slice) -> int:
    """Pixels of a half of the picture in the colour of a class."""
    return int((np.abs(pixels[:, half] - palette_of(2)[label]).max(axis=-1) <= 3).sum())


@pytest.mark.parametrize(("score", "shown"), [(0.31, True), (0.29, False)])
def test_predicted_boxes_are_drawn_from_a_score_on(
    score: float, shown: bool, tmp_path: Path
) -> None:
    pixels = drawn(tmp_path, score=score, label=1)
    middle = pixels.shape[1] // 2
    truths, guesses = slice(0, middle), slice(middle, None)
    assert painted(pixels, 0, truths) > 500
    assert painted(pixels, 1, truths) == 0
    assert (painted(pixels, 1, guesses) > 500) == shown


def test_a_box_is_drawn_between_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(
        "kora.reports.figures_detection.save", lambda figure, _: kept.append(figure)
    )
    image = np.zeros((3, 6, 8), np.uint8)
    whole = {"boxes": np.array([[0, 0, 8, 6]]), "labels": np.array([0])}
    box_grid(
        [image], [whole], [{**whole, "scores": np.array([1.0])}], tmp_path / "b.png", names=["a"]
    )
    axis = kept[0].axes[0]
    (box,) = axis.patches
    assert box.get_bbox().extents.tolist() == [0, 0, 8, 6]
    assert (*axis.get_xlim(), *axis.get_ylim()) == (0, 8, 6, 0)


def test_a_row_is_as_high_as_its_image(tmp_path: Path) -> None:
    pixels = drawn(tmp_path, score=0.9)
    assert pixels.shape[0] / pixels.shape[1] == pytest.approx((0.75 + 1.6) / 2, rel=0.1)
