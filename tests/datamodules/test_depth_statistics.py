"""Claims about the statistics of depth: against NumPy on the whole array, and block by block."""

from __future__ import annotations

import json
from typing import ClassVar

import numpy as np
import pytest
import torch
from rich.console import Console

from datamodules import ImageDataModule, Synthetic
from datamodules.depth_statistics import DepthStatistics, histogram_table
from datamodules.splits import IntArray


def depths(seed: int = 0) -> torch.Tensor:
    """Float32 (7, 6, 5) up to 14 m, a third not measured, one pixel never."""
    generator = torch.Generator().manual_seed(seed)
    depth = torch.rand(7, 6, 5, generator=generator) * 14
    depth[torch.rand(7, 6, 5, generator=generator) < 1 / 3] = 0
    depth[:, 2, 3] = 0
    return depth


def measured(depth: torch.Tensor) -> np.ndarray:
    return depth.numpy()[depth.numpy() > 0].astype(np.float64)


def of(depth: torch.Tensor) -> DepthStatistics:
    return DepthStatistics.of_blocks([depth], of_images=len(depth))


def test_numbers_are_those_of_numpy() -> None:
    depth = depths()
    values, found = measured(depth), of(depth)
    assert (found.images, found.of_images) == (7, 7)
    assert found.valid_share == pytest.approx(len(values) / depth.numel())
    assert found.min_m == values.min()
    assert found.max_m == values.max()
    assert found.mean_m == pytest.approx(values.mean(), rel=1e-12)
    lower_median = np.sort(values)[(len(values) - 1) // 2]
    assert found.median_m == pytest.approx(lower_median, rel=1 / 4096)


def test_counts_begin_at_their_edge_and_the_last_is_open() -> None:
    found = of(torch.tensor([[[0.0, 0.1, 0.5, 0.999], [9.99, 10.0, 11.0, 80000.0]]]))
    assert found.edges_m == [k / 2 for k in range(21)]
    assert found.counts == [1, 2, *[0] * 17, 1, 3]
    values, random = measured(depths()), of(depths())
    expected = np.histogram(values, bins=[*random.edges_m, np.inf])[0]
    assert random.counts == expected.tolist()


def test_the_mean_map_counts_measured_pixels_alone() -> None:
    depth = depths()
    found = of(depth)
    with np.errstate(invalid="ignore"):
        expected = depth.numpy().sum(0) / (depth.numpy() > 0).sum(0)
    assert found.mean_map.dtype == np.float32
    assert found.mean_map[2, 3] == pytest.approx(found.mean_m, rel=1e-6)
    assert np.isnan(expected[2, 3])
    expected[2, 3] = found.mean_m
    np.testing.assert_allclose(found.mean_map, expected, rtol=1e-6)


def test_blocks_add_up_to_the_whole() -> None:
    depth = depths()
    whole = of(depth)
    pieces = DepthStatistics.of_blocks(iter(depth.split(3)), of_images=7)
    mean = pytest.approx(whole.mean_m, rel=1e-12)  # the order of a sum shows in its last bits
    assert pieces.to_dict() == {**whole.to_dict(), "mean_m": mean}
    np.testing.assert_allclose(pieces.mean_map, whole.mean_map, rtol=1e-6)


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_the_median_is_as_precise_in_any_unit(factor: float) -> None:
    found = of(depths() * factor)
    assert found.median_m == pytest.approx(of(depths()).median_m * factor, rel=1 / 2048)


def test_one_constant_depth_is_told_exactly() -> None:
    found = of(torch.full((2, 3, 3), 2.7))
    assert found.min_m == found.median_m == found.max_m == pytest.approx(2.7)


def test_without_a_measured_pixel_there_is_no_number() -> None:
    found = of(torch.zeros(2, 3, 3))
    assert found.valid_share == 0
    assert sum(found.counts) == 0
    assert np.isnan([found.min_m, found.max_m, found.mean_m, found.median_m]).all()
    assert np.isnan(found.mean_map).all()


def test_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="no image"):
        DepthStatistics.of_blocks([], of_images=0)


def test_the_record_is_plain_and_holds_no_map() -> None:
    record = of(depths()).to_dict()
    assert json.loads(json.dumps(record)) == record
    assert "mean_map" not in record
    assert list(record)[:3] == ["images", "of_images", "valid_share"]


class Steps(ImageDataModule):
    """40 training and 12 test images of 3 classes; image i lies i + 1 decimetres away."""

    num_classes = 3
    class_names: list[str] = ["a", "b", "c"]  # noqa: RUF012
    image_size = (4, 6)
    dataset_name: ClassVar[str] = "Steps"

    def __init__(self) -> None:
        super().__init__(val_images=6)
        self.read_sizes: list[int] = []

    def read_labels(self, part: str) -> IntArray:
        return np.arange(40 if part == "train" else 12) % 3

    def read(self, part: str, positions: IntArray) -> dict[str, torch.Tensor]:
        self.read_sizes.append(len(positions))
        depth = (torch.from_numpy(positions) + 1).float() / 10
        size = (len(positions), *self.image_size)
        return {
            "image": torch.zeros(len(positions), 3, *self.image_size, dtype=torch.uint8),
            "depth_m": depth.view(-1, 1, 1).expand(size).contiguous(),
        }

    def fingerprint(self) -> str:
        return "0" * 64


def test_a_split_is_looked_at_whole_where_it_is_small() -> None:
    found = Steps().depth_statistics("test")
    assert (found.images, found.of_images) == (12, 12)
    assert found.min_m == pytest.approx(0.1)
    assert found.max_m == pytest.approx(1.2)
    assert found.mean_map.shape == (4, 6)


def test_most_images_are_spread_evenly_from_the_first_to_the_last() -> None:
    found = Steps().depth_statistics("test", most_images=3)
    assert (found.images, found.of_images) == (3, 12)
    assert found.min_m == pytest.approx(0.1)
    assert found.max_m == pytest.approx(1.2)
    assert found.median_m == pytest.approx(0.7, rel=1e-3)  # image 6 of 0..11


def test_each_split_has_its_own_images_and_what_is_decoded_is_not_read_again() -> None:
    data = Steps()
    read = {split: data.depth_statistics(split) for split in ("train", "val")}
    assert read["train"].of_images == 34
    assert read["val"].of_images == 6
    total = read["train"].mean_m * 34 + read["val"].mean_m * 6
    assert total == pytest.approx(sum(range(1, 41)) / 10)
    data.setup("fit")
    data.read_sizes.clear()
    assert data.depth_statistics("train").to_dict() == read["train"].to_dict()
    assert data.read_sizes == []


def test_rendered_scenes_have_depth_where_it_was_asked_for() -> None:
    options = {"image_size": 32, "train_images": 24, "test_images": 12}
    with pytest.raises(ValueError, match=r"Synthetic hold image and no depth_m.*data\.maps"):
        Synthetic(**options).depth_statistics("test")
    found = Synthetic(**options, maps=["depth_m"]).depth_statistics("test")
    assert found.valid_share == 1
    assert 0.2 < found.min_m < found.median_m < found.max_m < 20


def test_a_split_without_images_is_named() -> None:
    data = Synthetic(image_size=32, train_images=24, test_images=12, val_images=0, maps=["depth_m"])
    with pytest.raises(ValueError, match="val split of Synthetic"):
        data.depth_statistics("val")


def printed(stats: dict[str, DepthStatistics]) -> list[str]:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(histogram_table(stats))
    return capture.get().splitlines()


def test_the_histogram_shows_each_split_in_bars_and_shares() -> None:
    near = torch.full((1, 2, 4), 1.2)
    mixed = torch.tensor([[[0.0, 1.2, 1.2, 1.2], [2.4, 12.0, 12.0, 0.0]]])
    lines = printed({"training": of(near), "test": of(mixed)})
    assert "training" in lines[1]
    assert "test" in lines[1]
    rows = [line for line in lines if "–" in line or "and more" in line]
    assert rows[0].split() == ["1.0", "–", "1.5", "100.0%", "█" * 18, "50.0%", "█" * 9]
    assert rows[-1].split()[:3] == ["10.0", "and", "more"]
    assert "33.3%" in rows[-1]
    assert len(rows) == 19  # from the first depth that occurs to the last
    assert rows[2].split() == ["2.0", "–", "2.5", "16.7%", "███"]
    assert rows[1].split() == ["1.5", "–", "2.0"]


def test_three_splits_fit_a_narrow_terminal_and_what_is_rare_is_seen() -> None:
    depth = torch.full((1, 64, 64), 1.2)
    depth[0, 0, 0] = 3.3
    lines = printed({name: of(depth) for name in ("training", "validation", "test")})
    assert not any("…" in line for line in lines)
    rare = next(line for line in lines if "3.0 – 3.5" in line)
    assert rare.split()[3:] == ["<0.1%", "▏"] * 3


def test_a_histogram_of_nothing_has_no_rows() -> None:
    assert not any("%" in line for line in printed({"test": of(torch.zeros(1, 2, 2))}))
