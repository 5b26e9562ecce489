"""Claims about layers of splines."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline

from kora.adapters.graph.kan import KAN, SplineLinear


@pytest.mark.parametrize("intervals", [1, 5, 8])
def test_its_bases_are_those_of_scipy(intervals: int) -> None:
    layer = SplineLinear(1, 1, intervals).double()
    x = torch.linspace(-0.999, 0.999, 101, dtype=torch.float64)
    knots = layer.knots.double().numpy()
    expected = BSpline.design_matrix(x.numpy(), knots, 3).toarray()
    np.testing.assert_allclose(layer.bases(x).numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(expected.sum(axis=1), 1, atol=1e-6)


def test_it_learns_a_function_that_no_linear_layer_can() -> None:
    torch.manual_seed(0)
    layer = SplineLinear(2, 1, 8)
    x = torch.rand(512, 2) * 4 - 2
    target = torch.sin(3 * x[:, :1]) + x[:, 1:].square()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(500):
        optimizer.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        optimizer.step()
    linear = torch.linalg.lstsq(torch.cat((x, torch.ones(512, 1)), dim=1), target).solution
    best_linear = (torch.cat((x, torch.ones(512, 1)), dim=1) @ linear - target).square().mean()
    assert float(loss) < 0.05 * float(best_linear)


def test_far_inputs_still_have_a_gradient_to_the_weights() -> None:
    layer = SplineLinear(1, 1)
    layer(torch.tensor([[50.0], [-50.0]])).sum().backward()
    assert layer.weight.grad is not None
    assert float(layer.weight.grad.abs().sum()) > 0


def test_less_than_one_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="intervals=0"):
        KAN(0)
