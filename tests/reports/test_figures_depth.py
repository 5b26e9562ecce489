"""Pictures of depth: what was measured, what was predicted, and by how much it is wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from datamodules.scenes import render
from kora.reports import figures_depth
from kora.reports.canvas import BLUE, GREEN, ORANGE
from kora.reports.figures_depth import NOT_FINITE, UNMEASURED, depth_grid, depth_histogram

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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": np.zeros((2, 3, 8, 8))}, "images are float64"),
        ({"images": np.zeros((2, 8, 8, 3), np.uint8)}, r"\(2, 8, 8, 3\)"),
        ({"images": np.zeros((0, 3, 8, 8), np.uint8)}, "n >= 1"),
        ({"truths": np.ones((2, 8, 9))}, r"truths have shape \(2, 8, 9\); expected \(2, 8, 8\)"),
        ({"predictions": np.ones((2, 4, 4))}, r"predictions have shape \(2, 4, 4\)"),
    ],
)
def test_wrong_input_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    inputs: dict[str, Any] = {
        "images": np.zeros((2, 3, 8, 8), np.uint8),
        "truths": np.ones((2, 8, 8)),
        "predictions": np.ones((2, 8, 8)),
        "out_png": tmp_path / "x.png",
    }
    with pytest.raises(ValueError, match=words):
        depth_grid(**{**inputs, **change})
    assert not (tmp_path / "x.png").exists()


def test_histogram_draws_each_split_and_names_an_empty_one(tmp_path: Path) -> None:
    edges = [0.0, 1.0, 2.0, 4.0]
    counts = {"train": [10, 20, 10], "val": [1, 3, 1], "test": [2, 0, 2]}
    path = depth_histogram(edges, counts, tmp_path / "h.png")
    assert min(count(path, colour) for colour in (BLUE, ORANGE, GREEN)) > 10
    path = depth_histogram(edges, {"train": [1, 2, 1], "val": [0, 0, 0]}, path)
    assert count(path, BLUE) > 10


def test_histogram_is_a_share_a_metre_so_that_splits_and_bins_compare() -> None:
    np.testing.assert_allclose(figures_depth.shares_per_m([0, 1, 3], [10, 30]), [0.25, 0.375])
    np.testing.assert_array_equal(figures_depth.shares_per_m([0, 1, 3], [0, 0]), [0, 0])


@pytest.mark.parametrize(
    ("edges", "counts", "words"),
    [
        ([0, 1, 2], {"train": [1]}, "'train' has 1 counts for 3 edges; expected 2"),
        ([0, 2, 1], {"train": [1, 1]}, "ascend"),
        ([0, 1], {}, "no counts"),
    ],
)
def test_histogram_names_wrong_input(
    tmp_path: Path, edges: list[float], counts: dict[str, list[int]], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        depth_histogram(edges, counts, tmp_path / "h.png")


def test_a_shaded_map_is_dark_far_away_and_says_what_was_not_measured() -> None:
    depth_m = np.array([[1.0, 3.0, 5.0], [0.0, np.nan, 9.0]])
    shaded = figures_depth.shaded(depth_m, 1.0, 5.0)
    assert (shaded.shape, shaded.dtype) == ((2, 3, 3), np.uint8)
    near, middle, far = shaded[0].astype(int).sum(axis=1)
    assert near > middle > far
    assert np.array_equal(shaded[1, 2], shaded[0, 2])  # beyond the scale: the colour of its end
    for place, colour in ((0, UNMEASURED), (1, NOT_FINITE)):
        assert "#{:02X}{:02X}{:02X}".format(*shaded[1, place]) == colour
