"""Claims about the metrics of segmentation: equal to torchmetrics', exact in any batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from kora.metrics.areas import boundary_of, boundary_width, iou_of
from kora.metrics.segmentation import SegmentationMetrics

K = 5


def guesses(images: int = 12, size: tuple[int, int] = (24, 40)) -> tuple[Tensor, Tensor]:
    """Blocky predictions and truths, uint8 (B, H, W); class 4 never occurs, 255 does."""
    generator = torch.Generator().manual_seed(0)
    small = torch.randint(0, 4, (2, images, size[0] // 8, size[1] // 8), generator=generator)
    predicted, true = small.repeat_interleave(8, -1).repeat_interleave(8, -2).byte()
    right = torch.rand(true.shape, generator=generator) < 0.5
    predicted = torch.where(right, true, predicted)
    true[:, :3] = 255
    return predicted, true


def test_miou_and_accuracy_equal_torchmetrics_over_the_data_set() -> None:
    predicted, true = guesses()
    metrics = SegmentationMetrics(K)
    jaccard = MulticlassJaccardIndex(K, average="macro", ignore_index=255)
    accuracy = MulticlassAccuracy(K, average="micro", ignore_index=255)
    for some in (slice(0, 5), slice(5, 12)):
        metrics.update(list(predicted[some]), list(true[some]))
        jaccard.update(predicted[some], true[some].long())
        accuracy.update(predicted[some], true[some].long())
    found = metrics.compute()
    assert float(found["miou"]) == pytest.approx(float(jaccard.compute()), abs=1e-6)
    assert float(found["pixel_accuracy"]) == pytest.approx(float(accuracy.compute()), abs=1e-6)
    assert metrics.iou()[4].isnan()


def test_it_is_not_the_mean_over_images() -> None:
    metrics = SegmentationMetrics(2)
    small, large = torch.zeros(2, 2).byte(), torch.zeros(20, 20).byte()
    metrics.update([small + 1, large], [small, large])
    assert float(metrics.iou()[0]) == pytest.approx(400 / 404)


def test_an_image_that_comes_twice_counts_once_and_order_does_not_matter() -> None:
    predicted, true = guesses()
    once, again = SegmentationMetrics(K, boundary=True), SegmentationMetrics(K, boundary=True)
    once.update(list(predicted), list(true), torch.arange(12))
    order = torch.tensor([3, 11, 0, 3, 5, 1, 2, 4, 6, 7, 8, 9, 10, 0])
    again.update(list(predicted[order]), list(true[order]), order)
    assert once.compute() == again.compute()
    assert again.per_image()["index"].tolist() == list(range(12))


def test_images_of_any_size_count_by_their_pixels() -> None:
    metrics = SegmentationMetrics(2)
    metrics.update([torch.zeros(3, 5).byte()], [torch.zeros(3, 5).byte()])
    metrics.update([torch.zeros(7, 2).byte()], [torch.ones(7, 2).byte()])
    assert float(metrics.compute()["pixel_accuracy"]) == pytest.approx(15 / 29)


def test_what_is_ignored_changes_nothing() -> None:
    predicted, true = guesses()
    one, other = SegmentationMetrics(K, boundary=True), SegmentationMetrics(K, boundary=True)
    one.update(list(predicted), list(true))
    other.update(list(predicted.masked_fill(true == 255, 3)), list(true))
    assert one.compute() == other.compute()


def test_a_set_without_a_counted_pixel_gives_nan() -> None:
    metrics = SegmentationMetrics(2, boundary=True)
    metrics.update([torch.zeros(4, 4).byte()], [torch.full((4, 4), 255).byte()])
    assert all(value.isnan() for value in metrics.compute().values())
    assert metrics.per_image()["true"].tolist() == [[0, 0]]


# -- boundaries -----------------------------------------------------------------------------------


def eroded(mask: Tensor, distance: int) -> Tensor:
    """As the published code: erosions by 3 x 3 of the mask in a frame of zeros."""
    for _ in range(distance):
        framed = torch.nn.functional.pad(mask[None, None].float(), (1, 1, 1, 1))
        mask = -torch.nn.functional.max_pool2d(-framed, 3, stride=1)[0, 0] > 0.5
    return mask


@pytest.mark.parametrize("distance", [1, 2, 3])
def test_boundaries_are_what_erosion_takes_away(distance: int) -> None:
    _, true = guesses(1)
    edges = boundary_of(true[0], distance)
    for number in (0, 1, 2, 3, 255):
        mask = true[0] == number
        if number != 255:
            assert torch.equal(edges == number, mask & ~eroded(mask, distance))


def test_boundary_iou_is_that_of_the_boundaries_alone() -> None:
    predicted, true = guesses(3)
    true = true.masked_fill(true == 255, 0)
    metrics = SegmentationMetrics(4, boundary=True)
    metrics.update(list(predicted), list(true))
    areas = torch.zeros(3, 4)
    distance = boundary_width(24, 40)
    for one, truth in zip(predicted, true, strict=True):
        for number in range(4):
            edges = [(m == number) & ~eroded(m == number, distance) for m in (one, truth)]
            counts = [(edges[0] & edges[1]).sum(), edges[0].sum(), edges[1].sum()]
            areas[:, number] += torch.stack(counts)
    expected = float(iou_of(areas).nanmean())
    assert float(metrics.compute()["boundary_miou"]) == pytest.approx(expected, abs=1e-6)


def test_a_shifted_boundary_costs_boundary_iou_more_than_iou() -> None:
    true = torch.zeros(60, 80).byte()
    true[:, 40:] = 1
    metrics = SegmentationMetrics(2, boundary=True)
    metrics.update([true.roll(2, 1).clone().index_fill_(1, torch.tensor([0, 1]), 0)], [true])
    found = metrics.compute()
    assert found["boundary_miou"] < found["miou"] - 0.1
