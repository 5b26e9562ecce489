"""Depth metrics against numbers worked out by hand, and against NumPy."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from kora.metrics.depth import DepthMetrics
from kora.metrics.protocol import DepthProtocol
from tests.support.depth_metrics import FULL, PIXEL, scenes, values

# Two images of two rows. Image 0: ratios 2, 1, 1, and one pixel not measured (8 would be an error
# of 8 m). Image 1: one measured pixel, d/g = 1.25, which is not below 1.25.
TRUTH = torch.tensor([[[1.0, 2.0], [4.0, 0.0]], [[4.0, 0.0], [0.0, 0.0]]])
PREDICTION = torch.tensor([[[2.0, 2.0], [4.0, 8.0]], [[5.0, 1.0], [9.0, 3.0]]])
LN2, LN125 = math.log(2), math.log(1.25)

BY_HAND = {
    # image 0: mean of 1, 0, 0; image 1: 1/4
    "abs_rel": (1 / 3 + 1 / 4) / 2,
    # (1)^2/1, 0, 0; 1/4
    "sq_rel": (1 / 3 + 1 / 4) / 2,
    # sqrt(1/3); sqrt(1)
    "rmse_m": (math.sqrt(1 / 3) + 1) / 2,
    # sqrt(ln2^2 / 3); ln 1.25
    "rmse_log": (LN2 / math.sqrt(3) + LN125) / 2,
    # log10 2 / 3; log10 1.25
    "log10": (math.log10(2) / 3 + math.log10(1.25)) / 2,
    # 100 sqrt(ln2^2/3 - ln2^2/9); 0, since one pixel does not vary
    "silog": (100 * LN2 * math.sqrt(2) / 3 + 0) / 2,
    # two of three; none of one
    "delta1": (2 / 3 + 0) / 2,
    # below 1.5625: two of three; one of one
    "delta2": (2 / 3 + 1) / 2,
    # below 1.953125: two of three; one of one
    "delta3": (2 / 3 + 1) / 2,
}
BY_HAND_POOLED = {  # four pixels: errors 1, 0, 0, 1 m; e = ln 2, 0, 0, ln 1.25
    "abs_rel": (1 + 0 + 0 + 0.25) / 4,
    "sq_rel": (1 + 0 + 0 + 0.25) / 4,
    "rmse_m": math.sqrt(2 / 4),
    "rmse_log": math.sqrt((LN2**2 + LN125**2) / 4),
    "log10": (math.log10(2) + math.log10(1.25)) / 4,
    "silog": 100 * math.sqrt((LN2**2 + LN125**2) / 4 - ((LN2 + LN125) / 4) ** 2),
    "delta1": 2 / 4,
    "delta2": 3 / 4,
    "delta3": 3 / 4,
}


def numpy_metrics(prediction: Any, truth: Any, valid: Any) -> dict[str, float]:
    """One image, as the literature writes it: independent of the code under test."""
    d, g = prediction[valid].astype(np.float64), truth[valid].astype(np.float64)
    e, ratio = np.log(d) - np.log(g), np.maximum(d / g, g / d)
    return {
        "abs_rel": np.mean(np.abs(d - g) / g),
        "sq_rel": np.mean((d - g) ** 2 / g),
        "rmse_m": np.sqrt(np.mean((d - g) ** 2)),
        "rmse_log": np.sqrt(np.mean(e**2)),
        "log10": np.mean(np.abs(np.log10(d) - np.log10(g))),
        "silog": 100 * np.sqrt(np.mean(e**2) - np.mean(e) ** 2),
        **{f"delta{k}": np.mean(ratio < 1.25**k) for k in (1, 2, 3)},
    }


def filled(protocol: DepthProtocol, *batch: torch.Tensor) -> DepthMetrics:
    metrics = DepthMetrics(protocol)
    metrics.update(*batch)
    return metrics


# -- the numbers -------------------------------------------------------------------------------


def test_values_are_those_worked_out_by_hand() -> None:
    assert values(filled(FULL, PREDICTION, TRUTH)) == pytest.approx(BY_HAND, rel=1e-6)


def test_pooled_values_are_those_worked_out_by_hand() -> None:
    assert values(filled(PIXEL, PREDICTION, TRUTH)) == pytest.approx(BY_HAND_POOLED, rel=1e-6)


@pytest.mark.parametrize("average", ["image", "pixel"])
def test_values_are_numpys_inside_the_eigen_crop_with_invalid_pixels(average: Any) -> None:
    prediction, truth = scenes(3, size=(480, 640))
    truth[1, :, :600] = 0  # few pixels are left: pooling weighs them less
    inside = np.zeros((480, 640), bool)
    inside[45:471, 41:601] = True
    valid = inside & (truth.numpy() > 1e-3) & (truth.numpy() < 10)
    clamped = prediction.numpy().clip(1e-3, 10)
    if average == "image":
        each = [
            numpy_metrics(*arrays) for arrays in zip(clamped, truth.numpy(), valid, strict=True)
        ]
        expected = {name: float(np.mean([one[name] for one in each])) for name in each[0]}
    else:
        expected = numpy_metrics(clamped, truth.numpy(), valid)
    metrics = filled(replace(DepthProtocol(), average=average), prediction, truth)
    assert values(metrics) == pytest.approx(expected, rel=2e-6)


def test_silog_of_a_nearly_constant_error_does_not_cancel() -> None:
    truth = torch.full((1, 480, 640), 2.0)
    ripple = 1e-4 * torch.sin(torch.arange(640.0))
    prediction = 2 * truth * ripple.exp()  # ln d - ln g = ln 2 + ripple
    expected = numpy_metrics(prediction.numpy(), truth.numpy(), truth.numpy() > 0)["silog"]
    assert float(filled(FULL, prediction, truth).compute()["silog"]) == pytest.approx(
        expected, rel=2e-3
    )


def test_perfect_prediction_has_no_error() -> None:
    _, truth = scenes(2)
    perfect = values(filled(FULL, truth, truth))
    assert {name for name, value in perfect.items() if value == 1} == {"delta1", "delta2", "delta3"}
    assert {value for name, value in perfect.items() if not name.startswith("delta")} == {0.0}


@pytest.mark.parametrize(
    "change",
    [{"min_depth_m": 2.0}, {"max_depth_m": 5.0}, {"average": "pixel"}, {"align": "median"}],
)
def test_protocol_is_followed(change: dict[str, Any]) -> None:
    batch = scenes(3)
    changed = values(filled(replace(FULL, **change), *batch))
    usual = values(filled(FULL, *batch))
    assert all(changed[name] != usual[name] for name in ("abs_rel", "rmse_m", "delta1"))


def test_invalid_pixels_never_count() -> None:
    prediction, truth = scenes(2)
    invalid = ~FULL.valid(truth)
    other_prediction, other_truth = prediction.clone(), truth.clone()
    other_prediction[invalid], other_truth[invalid] = math.nan, math.nan
    assert values(filled(FULL, other_prediction, other_truth)) == values(
        filled(FULL, prediction, truth)
    )


# -- images ------------------------------------------------------------------------------------


def test_image_without_a_valid_pixel_is_skipped_and_counted() -> None:
    prediction, truth = scenes(3)
    truth[1] = 0
    metrics = filled(FULL, prediction, truth)
    assert (len(metrics.per_image()["index"]), metrics.skipped) == (2, 1)
    assert values(metrics) == values(filled(FULL, prediction[[0, 2]], truth[[0, 2]]))
    assert values(filled(PIXEL, prediction, truth)) == values(
        filled(PIXEL, prediction[[0, 2]], truth[[0, 2]])
    )


@pytest.mark.parametrize("protocol", [FULL, PIXEL])
def test_nothing_but_skipped_images_is_nan_with_a_warning(protocol: DepthProtocol) -> None:
    metrics = filled(protocol, PREDICTION, TRUTH * 1000)  # millimetres
    with pytest.warns(UserWarning, match=r"of 2 images none has a valid pixel.*0\.001 to 10 m"):
        assert all(math.isnan(value) for value in values(metrics).values())
    assert (len(metrics.per_image()["index"]), metrics.skipped) == (0, 2)


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_no_image_at_all_is_nan_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="of 0 images none"):
        assert all(map(math.isnan, values(DepthMetrics(FULL)).values()))


def test_repeated_index_is_dropped_across_batches_and_no_index_drops_nothing() -> None:
    prediction, truth = scenes(3)
    named, unnamed = DepthMetrics(FULL), DepthMetrics(FULL)
    for part in ([0, 1], [2, 0]):
        named.update(prediction[part], truth[part], torch.tensor(part))
        unnamed.update(prediction[part], truth[part])
    assert (len(named.per_image()["index"]), len(unnamed.per_image()["index"])) == (3, 4)
    assert values(named) == pytest.approx(values(filled(FULL, prediction, truth)), rel=1e-12)
    assert values(unnamed) != pytest.approx(values(named), rel=1e-6)


def test_repeated_index_of_a_skipped_image_is_counted_once() -> None:
    prediction, truth = scenes(2)
    truth[1] = 0
    part = torch.tensor([0, 1, 1])
    metrics = filled(FULL, prediction[part], truth[part], part)
    assert (len(metrics.per_image()["index"]), metrics.skipped) == (1, 1)


def test_per_image_values_come_by_index() -> None:
    prediction, truth = scenes(3)
    truth[1] = 0
    table = filled(FULL, prediction, truth, torch.tensor([7, 5, 3])).per_image()
    assert table["index"].tolist() == [3, 7]
    valid = FULL.valid(truth).numpy()
    assert table["pixels"].tolist() == [valid[2].sum(), valid[0].sum()]
    for place, image in enumerate((2, 0)):
        clamped = prediction[image].numpy().clip(1e-3, 10)
        expected = numpy_metrics(clamped, truth[image].numpy(), valid[image])
        found = {name: float(table[name][place]) for name in expected}
        assert found == pytest.approx(expected, rel=1e-5)


def test_reset_forgets_and_update_after_compute_adds() -> None:
    prediction, truth = scenes(4)
    metrics = filled(FULL, prediction[:2], truth[:2])
    assert len(metrics.per_image()["index"]) == 2
    metrics.update(prediction[2:], truth[2:])
    assert len(metrics.per_image()["index"]) == 4
    metrics.reset()
    metrics.update(prediction[:1], truth[:1])
    assert len(metrics.per_image()["index"]) == 1


# -- types and mistakes ------------------------------------------------------------------------


def test_bfloat16_counts_as_the_float32_of_its_value_under_autocast_too() -> None:
    prediction, truth = scenes(2)
    low = prediction.bfloat16()
    metrics = DepthMetrics(FULL).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        metrics.update(low, truth)
    assert values(metrics) == values(filled(FULL, low.float(), truth))


def test_prediction_of_another_size_is_resized() -> None:
    prediction, truth = scenes(2)
    small = prediction[:, ::2, ::2]
    assert values(filled(FULL, small, truth)) == values(
        filled(FULL, FULL.prepare(small, truth), truth)
    )


def test_no_graph_is_kept() -> None:
    prediction, truth = scenes(2)
    metrics = filled(FULL, prediction.requires_grad_(), truth)
    assert not any(row.requires_grad for row in metrics.rows)


def test_updating_never_waits_for_the_device() -> None:
    # Tensors without data refuse .item(), branches on values, and selection by a mask.
    depth = torch.empty(2, 6, 8, device="meta")
    metrics = filled(FULL, depth[:, ::2, ::2], depth, torch.empty(2, device="meta").long())
    assert metrics.rows[0].shape == (2, 9)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"prediction has shape \(2, 1, 2, 2\)"):
        filled(FULL, PREDICTION[:, None], TRUTH)
    with pytest.raises(ValueError, match="480x640"):
        filled(DepthProtocol(), PREDICTION, TRUTH)
    with pytest.raises(
        ValueError, match=r"\(2,\) and type torch.float32, expected \(2,\) integers"
    ):
        filled(FULL, PREDICTION, TRUTH, torch.ones(2))
    with pytest.raises(ValueError, match=r"Index has shape \(1,\)"):
        filled(FULL, PREDICTION, TRUTH, torch.tensor([1]))
