"""Depth losses: their formulas, what they are blind to, and that invalid pixels never count."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kora.losses import DepthLoss, ScaleShiftInvariantLoss, SILogLoss

LOSSES: list[DepthLoss] = [SILogLoss(), ScaleShiftInvariantLoss()]
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)


def depths(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.5 + 8 * torch.rand(shape or (3, 12, 16), generator=generator, dtype=dtype)


def mask(*shape: int, share: float = 0.7) -> Tensor:
    return torch.rand(shape or (3, 12, 16), generator=torch.Generator().manual_seed(9)) < share


def value_and_gradient(
    loss: DepthLoss, prediction: Tensor, target: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor]:
    leaf = prediction.clone().requires_grad_()
    value = loss(leaf, target, valid)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


# -- formulas ----------------------------------------------------------------------------------


def test_silog_is_the_value_worked_out_by_hand() -> None:
    prediction = torch.tensor([[[2.0, 4.0]], [[1.0, 9.0]]])
    target = torch.tensor([[[1.0, 1.0]], [[1.0, 1.0]]])
    valid = torch.tensor([[[True, True]], [[True, False]]])
    # g = ln 2, 2 ln 2, 0: mean ln 2, variance (1 + 0 + 1)/3 ln^2 2
    expected = 10 * math.log(2) * math.sqrt(2 / 3 + (1 - 0.85) * 1)
    assert float(SILogLoss(0.85, weight=10)(prediction, target, valid)) == pytest.approx(expected)


def test_silog_is_numpys_over_the_pixels_of_the_batch() -> None:
    prediction, target, valid = depths(), depths(seed=1), mask()
    g = np.log(prediction[valid].double().numpy()) - np.log(target[valid].double().numpy())
    expected = np.sqrt(np.mean(g**2) - 0.85 * np.mean(g) ** 2)
    assert float(SILogLoss()(prediction, target, valid)) == pytest.approx(expected, rel=1e-6)


def numpy_scale_shift_invariant(prediction: Any, target: Any, valid: Any, *, scales: int) -> float:
    """One image, pixel by pixel."""

    def normalised(depth: Any) -> Any:
        centred = depth - np.median(depth[valid])
        return centred / np.mean(np.abs(centred[valid]))

    residual = normalised(prediction) - normalised(target)
    total = np.mean(np.abs(residual[valid]))
    for k in range(scales):
        r, v = residual[:: 2**k, :: 2**k], valid[:: 2**k, :: 2**k]
        differences = 0.0
        for y, x in np.argwhere(v):
            for other in ((y + 1, x), (y, x + 1)):
                if other[0] < v.shape[0] and other[1] < v.shape[1] and v[other]:
                    differences += abs(r[other] - r[y, x])
        total += 0.5 * differences / v.sum()
    return float(total)


def test_scale_shift_invariant_is_numpys_averaged_over_images() -> None:
    prediction, target, valid = depths(dtype=torch.float64), depths(seed=1).double(), mask()
    triples = zip(prediction.numpy(), target.numpy(), valid.numpy(), strict=True)
    expected = np.mean([numpy_scale_shift_invariant(*triple, scales=3) for triple in triples])
    found = ScaleShiftInvariantLoss(scales=3)(prediction, target, valid)
    assert float(found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dim", [1, 2])
def test_gradient_term_differs_along_rows_and_along_columns_and_not_across_images(dim: int) -> None:
    ramp = torch.linspace(1, 5, 16).view((1, 16, 1) if dim == 1 else (1, 1, 16)).expand(2, 16, 16)
    flat = torch.full((2, 16, 16), 3.0)
    valid = torch.ones(2, 16, 16, dtype=torch.bool)
    one_term = ScaleShiftInvariantLoss(1.0, scales=1)(ramp, flat, valid)
    no_term = ScaleShiftInvariantLoss(0.0)(ramp, flat, valid)
    # A ramp of 16 steps from -1 to 1 over its mean deviation, 8/15; 15 differences on 16 pixels.
    assert float(one_term - no_term) == pytest.approx(15 / 16 * (2 / 15) / (8 / 15), rel=1e-5)


@each_loss
def test_gradients_are_right(loss: DepthLoss) -> None:
    prediction = depths(2, 5, 6, dtype=torch.float64).requires_grad_()
    target, valid = depths(2, 5, 6, seed=1).double(), mask(2, 5, 6)
    assert torch.autograd.gradcheck(lambda p: loss(p, target, valid), prediction)


# -- what they are blind to --------------------------------------------------------------------


def test_silog_of_variance_alone_is_blind_to_scale_and_the_default_is_not() -> None:
    prediction, target, valid = depths(), depths(seed=1), mask()
    blind = SILogLoss(1.0)
    assert torch.allclose(blind(3 * prediction, target, valid), blind(prediction, target, valid))
    seeing = SILogLoss()
    assert not torch.allclose(
        seeing(3 * prediction, target, valid), seeing(prediction, target, valid)
    )


@pytest.mark.parametrize(
    "change",
    [lambda d: 3 * d, lambda d: d + 2, lambda d: 0.2 * d - 5],
    ids=["scale", "shift", "both"],
)
def test_scale_shift_invariant_is_blind_to_scale_and_shift(
    change: Callable[[Tensor], Tensor],
) -> None:
    prediction, target, valid = depths(), depths(seed=1), mask()
    loss = ScaleShiftInvariantLoss()
    expected = loss(prediction, target, valid)
    assert torch.allclose(loss(change(prediction), target, valid), expected, rtol=1e-4)
    assert torch.allclose(loss(prediction, change(target), valid), expected, rtol=1e-4)
    assert loss(change(target), target, valid) < 1e-5 < expected
    assert loss(-target, target, valid) > 1


# -- arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usual", "changed"),
    [
        (SILogLoss(), SILogLoss(0.5)),
        (SILogLoss(), SILogLoss(weight=10.0)),
        (ScaleShiftInvariantLoss(), ScaleShiftInvariantLoss(1.0)),
        (ScaleShiftInvariantLoss(), ScaleShiftInvariantLoss(scales=2)),
    ],
)
def test_every_argument_changes_something(usual: DepthLoss, changed: DepthLoss) -> None:
    batch = 1.5 * depths(), depths(seed=1), mask()
    assert not torch.allclose(usual(*batch), changed(*batch), rtol=1e-2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SILogLoss(1.5), "variance_focus is 1.5, expected 0 to 1"),
        (lambda: SILogLoss(weight=0), "weight is 0, expected a positive number"),
        (lambda: ScaleShiftInvariantLoss(-1), "gradient_weight is -1, expected 0 or more"),
        (lambda: ScaleShiftInvariantLoss(scales=0), "scales is 0, expected a whole number from 1"),
    ],
)
def test_argument_out_of_range_is_refused(make: Callable[[], DepthLoss], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@each_loss
def test_wrong_shapes_and_types_are_refused(loss: DepthLoss) -> None:
    depth, valid = depths(), mask()
    with pytest.raises(ValueError, match=r"differ in shape\. Resize the prediction"):
        loss(depth[..., ::2], depth, valid)
    with pytest.raises(ValueError, match=r"prediction has shape \(3, 1, 12, 16\)"):
        loss(depth[:, None], depth, valid)
    with pytest.raises(ValueError, match=r"valid is torch.float32, expected bool"):
        loss(depth, depth, valid.float())


# -- pixels that do not count ------------------------------------------------------------------


@each_loss
@pytest.mark.parametrize("junk", [0.0, 7.0, -3.0, 1e30, math.nan, math.inf])
def test_invalid_pixels_change_neither_loss_nor_gradient(loss: DepthLoss, junk: float) -> None:
    prediction, target, valid = depths(), depths(seed=1), mask()
    expected, gradient = value_and_gradient(loss, prediction, target, valid)
    for changed in (
        (prediction, target.masked_fill(~valid, junk)),
        (prediction.masked_fill(~valid, junk), target),
    ):
        value, its_gradient = value_and_gradient(loss, *changed, valid)
        assert torch.equal(value, expected)
        assert torch.equal(its_gradient, gradient)
    assert not gradient[~valid].any()
    assert gradient[valid].all()


@each_loss
def test_batch_without_a_valid_pixel_costs_nothing_and_moves_nothing(loss: DepthLoss) -> None:
    none = torch.zeros(3, 12, 16, dtype=torch.bool)
    value, gradient = value_and_gradient(loss, depths(), torch.full((3, 12, 16), math.nan), none)
    assert value == 0
    assert torch.equal(gradient, torch.zeros(3, 12, 16))


@each_loss
def test_image_without_a_valid_pixel_is_as_if_it_were_not_there(loss: DepthLoss) -> None:
    prediction, target, valid = depths(), depths(seed=1), mask()
    valid[1] = False
    value, gradient = value_and_gradient(loss, prediction, target, valid)
    rest = [0, 2]
    expected, its_gradient = value_and_gradient(loss, prediction[rest], target[rest], valid[rest])
    assert torch.allclose(value, expected)
    assert torch.allclose(gradient[rest], its_gradient)
    assert not gradient[1].any()


@each_loss
def test_one_valid_pixel_is_enough_for_a_finite_loss(loss: DepthLoss) -> None:
    valid = torch.zeros(3, 12, 16, dtype=torch.bool)
    valid[0, 5, 5] = True
    value, gradient = value_and_gradient(loss, depths(), depths(seed=1), valid)
    assert value.isfinite()
    assert gradient.isfinite().all()


# -- numerical edges ---------------------------------------------------------------------------


@each_loss
def test_gradient_vanishes_where_the_prediction_is_the_truth(loss: DepthLoss) -> None:
    value, gradient = value_and_gradient(loss, depths(), depths(), mask())
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


@each_loss
@pytest.mark.parametrize("depth_m", [-1.0, 0.0, 2.0])
def test_constant_prediction_has_a_finite_loss_and_gradient(
    loss: DepthLoss, depth_m: float
) -> None:
    constant = torch.full((3, 12, 16), depth_m)
    value, gradient = value_and_gradient(loss, constant, depths(), mask())
    assert value.isfinite()
    assert value > 0
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 1


@each_loss
def test_prediction_that_diverged_is_not_hidden(loss: DepthLoss) -> None:
    prediction, valid = depths(), mask()
    prediction[valid] = math.nan
    assert loss(prediction, depths(), valid).isnan()


@each_loss
def test_low_precision_and_autocast_are_worked_out_in_float32(loss: DepthLoss) -> None:
    low, target, valid = depths().bfloat16(), depths(seed=1), mask()
    expected = loss(low.float(), target, valid)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(low, target, valid)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)


@each_loss
def test_nothing_waits_for_the_device(loss: DepthLoss) -> None:
    # Tensors without data refuse .item(), branches on values, and selection by a mask.
    prediction = torch.empty(2, 12, 16, device="meta", requires_grad=True)
    valid = torch.empty(2, 12, 16, device="meta", dtype=torch.bool)
    value = loss(prediction, torch.empty(2, 12, 16, device="meta"), valid)
    value.backward()
    assert value.shape == ()
