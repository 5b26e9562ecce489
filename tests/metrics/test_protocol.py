"""The evaluation protocol: which pixels count, and what a prediction becomes before scoring."""

import json
import math
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
import torch

from kora.metrics.protocol import DepthProtocol, masked_median

FULL = DepthProtocol.preset("full")


def maps(*shape: int, low: float = 0.5, high: float = 9.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, generator=generator)


# -- the object --------------------------------------------------------------------------------


def test_default_is_the_published_protocol_of_nyu() -> None:
    expected = {
        "split": None,
        "crop": "eigen",
        "min_depth_m": 1e-3,
        "max_depth_m": 10.0,
        "average": "image",
        "align": "none",
        "flip_tta": False,
    }
    assert DepthProtocol().to_dict() == expected
    assert DepthProtocol.preset("eigen") == DepthProtocol()
    assert DepthProtocol.preset("full").to_dict() == expected | {"crop": "none"}


def test_to_dict_survives_json_and_makes_the_same_protocol() -> None:
    protocol = DepthProtocol(
        "official", "none", 0.1, 80, average="pixel", align="median", flip_tta=True
    )
    assert DepthProtocol(**json.loads(json.dumps(protocol.to_dict()))) == protocol


def test_protocol_cannot_be_changed_after_the_fact() -> None:
    with pytest.raises(FrozenInstanceError):
        DepthProtocol().crop = "none"


@pytest.mark.parametrize(
    "change",
    [
        {"split": "official"},
        {"crop": "none"},
        {"min_depth_m": 0.1},
        {"max_depth_m": 80},
        {"average": "pixel"},
        {"align": "median"},
        {"align": "scale_shift"},
        {"flip_tta": True},
    ],
)
def test_every_field_is_stated_in_the_record_and_the_sentence(change: dict[str, Any]) -> None:
    changed = replace(DepthProtocol(), **change)
    assert changed.to_dict() == DepthProtocol().to_dict() | change
    assert changed.sentence() != DepthProtocol().sentence()


def test_sentence_reads_as_one_line() -> None:
    assert DepthProtocol().sentence() == (
        "Eigen crop, 0.001 to 10 m, mean over images, no alignment, no flip"
    )
    assert replace(FULL, split="official", align="median").sentence() == (
        "split official, no crop, 0.001 to 10 m, mean over images, aligned by median, no flip"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop": "garg"}, "crop is 'garg', expected one of eigen, none"),
        ({"average": "batch"}, "average is 'batch', expected one of image, pixel"),
        ({"align": "scale"}, "align is 'scale', expected one of none, median, scale_shift"),
        ({"min_depth_m": 0.0}, "expected 0 < min_depth_m"),
        ({"min_depth_m": 10.0}, "expected 0 < min_depth_m < max_depth_m"),
        ({"max_depth_m": math.inf}, "both finite"),
        ({"max_depth_m": math.nan}, "both finite"),
        ({"max_depth_m": "10"}, "max_depth_m is '10', expected a number of metres"),
        ({"flip_tta": 1}, "flip_tta is 1, expected true or false"),
        ({"split": ""}, "split is '', expected the name of a split"),
    ],
)
def test_field_without_meaning_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DepthProtocol(**fields)


def test_unknown_preset_is_refused() -> None:
    with pytest.raises(ValueError, match="'garg', expected eigen, full"):
        DepthProtocol.preset("garg")


# -- which pixels count ------------------------------------------------------------------------


def test_eigen_crop_is_rows_45_to_471_and_columns_41_to_601() -> None:
    valid = DepthProtocol().valid(torch.ones(2, 480, 640))
    assert valid.dtype == torch.bool
    expected = torch.zeros(2, 480, 640, dtype=torch.bool)
    expected[:, 45:471, 41:601] = True
    assert torch.equal(valid, expected)
    assert FULL.valid(torch.ones(2, 480, 640)).all()


@pytest.mark.parametrize("size", [(640, 480), (228, 304)])
def test_eigen_crop_on_another_size_is_refused_with_the_remedy(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"480x640.*{size[0]}x{size[1]}.*`protocol: full`"):
        DepthProtocol().valid(torch.ones(1, *size))


def test_only_truths_strictly_inside_the_range_count() -> None:
    target = torch.tensor([[[0.0, 1e-3, 0.002, 9.99, 10.0, 11.0, math.nan, math.inf, -1.0]]])
    assert FULL.valid(target).tolist() == [
        [[False, False, True, True, False, False, False, False, False]]
    ]
    narrow = replace(FULL, min_depth_m=0.002, max_depth_m=20)
    assert narrow.valid(target)[0, 0].nonzero().flatten().tolist() == [3, 4, 5]


# -- what is scored ----------------------------------------------------------------------------


def test_prediction_of_the_right_size_and_range_is_left_alone() -> None:
    depth = maps(2, 6, 8)
    assert torch.equal(FULL.prepare(depth, maps(2, 6, 8, seed=1)), depth)


def test_prediction_is_resized_bilinearly_to_the_truth() -> None:
    prepared = FULL.prepare(torch.tensor([[[1.0, 3.0]]]), torch.ones(1, 1, 4))
    # Centres of four pixels lie at -0.25, 0.25, 0.75, 1.25 of two: by hand 1, 1.5, 2.5, 3.
    assert torch.allclose(prepared, torch.tensor([[[1.0, 1.5, 2.5, 3.0]]]))


def test_prediction_that_is_not_finite_is_replaced_and_does_not_spread() -> None:
    bad = torch.tensor([[[math.nan, math.inf, -math.inf, 5.0]]])
    assert torch.allclose(
        FULL.prepare(bad, torch.ones(1, 1, 4)), torch.tensor([[[1e-3, 10, 1e-3, 5]]])
    )
    wide = FULL.prepare(torch.tensor([[[math.nan, 2.0, 2.0, 2.0]]]), torch.ones(1, 1, 8))
    assert torch.equal(wide[0, 0, 3:], torch.full((5,), 2.0))


def test_prediction_is_clamped_to_the_range() -> None:
    depth = torch.tensor([[[-3.0, 0.0, 4.0, 50.0]]])
    truth = torch.ones(1, 1, 4)
    assert torch.allclose(FULL.prepare(depth, truth), torch.tensor([[[1e-3, 1e-3, 4, 10]]]))
    wider = replace(FULL, min_depth_m=0.5, max_depth_m=80)
    assert torch.allclose(wider.prepare(depth, truth), torch.tensor([[[0.5, 0.5, 4, 50]]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_floating_prediction_becomes_float32(dtype: torch.dtype) -> None:
    depth = maps(2, 3, 4).to(dtype)
    prepared = FULL.prepare(depth, torch.ones(2, 6, 8))
    assert prepared.dtype == torch.float32
    assert torch.equal(prepared, FULL.prepare(depth.float(), torch.ones(2, 6, 8)))


def test_median_alignment_undoes_a_scale_per_image_from_counting_pixels_alone() -> None:
    truth = maps(2, 6, 8)
    truth[0, 0] = 0  # not measured
    wrong = truth * torch.tensor([0.2, 3.0])[:, None, None]
    wrong[0, 0] = 1000.0
    aligned = replace(FULL, align="median").prepare(wrong, truth)
    valid = FULL.valid(truth)
    assert torch.allclose(aligned[valid], truth[valid], rtol=1e-5)
    assert not torch.allclose(FULL.prepare(wrong, truth)[valid], truth[valid], rtol=1e-2)


def test_scale_shift_alignment_is_numpys_least_squares_on_counting_pixels() -> None:
    truth, wrong = maps(2, 6, 8), maps(2, 6, 8, seed=1)
    truth[0, 0] = 0
    aligned = replace(FULL, align="scale_shift").prepare(wrong, truth)
    for image in range(2):
        x, y = wrong[image].double().numpy(), truth[image].double().numpy()
        slope, shift = np.polyfit(x[y > 0], y[y > 0], 1)
        expected = np.clip(slope * x + shift, 1e-3, 10)
        np.testing.assert_allclose(aligned[image].numpy(), expected, rtol=1e-5)


def test_alignment_of_what_cannot_be_aligned_is_finite() -> None:
    truth = maps(3, 6, 8)
    truth[1] = 0  # nothing measured
    constant = torch.tensor([2.3, 2.3, -1.0])[:, None, None].expand(3, 6, 8)
    by_median = replace(FULL, align="median").prepare(constant, truth)
    assert torch.allclose(by_median[0], truth[0].flatten().quantile(0.5))
    assert torch.allclose(by_median[1], torch.tensor(2.3))
    assert torch.allclose(by_median[2], torch.tensor(1e-3))
    by_fit = replace(FULL, align="scale_shift").prepare(constant, truth)
    means = torch.stack([truth[0].mean(), torch.tensor(2.3), truth[2].mean()])
    assert torch.allclose(by_fit, means[:, None, None].expand(3, 6, 8))


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (
            torch.ones(2, 1, 4, 4),
            torch.ones(2, 4, 4),
            r"prediction has shape \(2, 1, 4, 4\).*\[:, 0",
        ),
        (torch.ones(2, 4, 4), torch.ones(4, 4), r"target has shape \(4, 4\), expected \(images, r"),
        (torch.ones(2, 4, 4), torch.ones(3, 4, 4), "2 depth predictions came with 3 truths"),
        (torch.ones(1, 4, 4), torch.ones(1, 4, 4).int(), "target is torch.int32.*float.*/ 1000"),
    ],
)
def test_wrong_shapes_and_types_are_refused(
    prediction: torch.Tensor, target: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        FULL.prepare(prediction, target)


def test_masked_median_is_numpys_and_sends_its_gradient_to_the_middle() -> None:
    values = torch.tensor([[5.0, 1.0, 9.0, 3.0], [4.0, 8.0, 2.0, 6.0]], requires_grad=True)
    valid = torch.tensor([[True, True, False, True], [True, True, True, True]])
    median = masked_median(values, valid)
    assert median.tolist() == [3.0, 5.0]
    (gradient,) = torch.autograd.grad(median.sum(), values)
    assert gradient.tolist() == [[0, 0, 0, 1], [0.5, 0, 0, 0.5]]
