"""Pictures of depth: what was measured, what was predicted, and by how much it is wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from datamodules.scenes.render import render
from kora.reports import figures_depth
from kora.reports.figures_depth import NOT_FINITE, UNMEASURED, depth_grid

Array = NDArray[Any]


def scenes(n: int = 2, *, size: int = 64) -> tuple[Array, Array, Array]:
    """Images, truths with a hole in the first, and predictions that are half a metre too far."""
    found = render(range(n), style="studio", seed=0, split="test", size=size)
    truths = found["depth_m"].numpy().copy()
    predictions = truths + np.float32(0.5)
    truths[0, : size // 4] = 0
    return found["image"].numpy(), truths, predictions


def pixels(path: Path) -> Array:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def count(path: Path, colour: str) -> int:
    """Pixels of exactly this colour."""
    rgb = [int(colour.lstrip("#")[k : k + 2], 16) for k in (0, 2, 4)]
    return int((pixels(path) == rgb).all(axis=-1).sum())


def test_unmeasured_pixels_are_grey_in_truth_and_error(tmp_path: Path) -> None:
    images, truths, predictions = scenes()
    hole = depth_grid(images, truths, predictions, tmp_path / "a" / "hole.png", title="$a$")
    assert [p.name for p in hole.parent.iterdir()] == ["hole.png"]  # no temporary file
    whole = depth_grid(images, np.maximum(truths, 1), predictions, tmp_path / "whole.png")
    assert count(hole, UNMEASURED) > 2000 > 200 > count(whole, UNMEASURED)


def test_a_row_is_an_image(tmp_path: Path) -> None:
    images, truths, predictions = scenes(4)
    heights = [
        pixels(depth_grid(images[:n], truths[:n], predictions[:n], tmp_path / f"{n}.png")).shape[0]
        for n in (1, 2, 4)
    ]
    assert heights[0] < heights[1] < heights[2]
    assert heights[2] - heights[1] == pytest.approx(2 * (heights[1] - heights[0]), abs=4)


def test_frames_of_480x640_stay_of_readable_size(tmp_path: Path) -> None:
    depth = np.linspace(0.5, 9, 480 * 640, dtype=np.float32).reshape(1, 480, 640)
    images = np.full((1, 3, 480, 640), 128, np.uint8)
    height, width, _ = pixels(depth_grid(images, depth, depth * 1.1, tmp_path / "x.png")).shape
    assert 300 < height < 700
    assert 900 < width < 1600


def test_error_is_prediction_minus_truth_over_measured_pixels(tmp_path: Path) -> None:
    _, truths, predictions = scenes()
    errors, rmse_m = figures_depth.errors_of(truths, predictions)
    assert np.isnan(errors[0, :16]).all()
    np.testing.assert_allclose(errors[1], 0.5, atol=1e-6)
    np.testing.assert_allclose(rmse_m, [0.5, 0.5], atol=1e-6)
    truths[0], predictions[1, :32] = 0, np.inf
    errors, rmse_m = figures_depth.errors_of(truths, predictions)
    np.testing.assert_allclose(rmse_m, [np.nan, 0.5], atol=1e-6)
    assert np.isnan(errors[1, :32]).all()


def test_one_wild_prediction_does_not_wash_out_the_scale() -> None:
    _, truths, _ = scenes()
    low, high = figures_depth.depth_range(truths)
    assert truths[truths > 0].min() <= low < high <= truths.max()
    assert figures_depth.depth_range(np.zeros((1, 4, 4))) == (0.0, 1.0)  # nothing was measured
    low, high = figures_depth.depth_range(np.full((1, 4, 4), 2.0))
    assert low < 2 < high


@pytest.mark.parametrize("case", ["none measured", "exact", "not a number"])
def test_odd_runs_still_give_a_picture(tmp_path: Path, case: str) -> None:
    images, truths, predictions = scenes(1)
    if case == "none measured":
        truths[:] = 0
    elif case == "exact":
        predictions = truths.copy()
    elif case == "not a number":
        predictions[:, :32] = np.nan
        predictions[:, 0, 0] = np.inf
    path = depth_grid(images, truths, predictions, tmp_path / "x.png")
    assert (count(path, NOT_FINITE) > 1000) == (case == "not a number")


def test_a_shaded_map_is_dark_far_away_and_says_what_was_not_measured() -> None:
    depth_m = np.array([[1.0, 3.0, 5.0], [0.0, np.nan, 9.0]])
    shaded = figures_depth.shaded(depth_m, 1.0, 5.0)
    assert (shaded.shape, shaded.dtype) == ((2, 3, 3), np.uint8)
    near, middle, far = shaded[0].astype(int).sum(axis=1)
    assert near > middle > far
    assert np.array_equal(shaded[1, 2], shaded[0, 2])  # beyond the scale: the colour of its end
    for place, colour in ((0, UNMEASURED), (1, NOT_FINITE)):
        assert "#{:02X}{:02X}{:02X}".format(*shaded[1, place]) == colour
