"""A chain of Kolmogorov-Arnold layers between the nodes of KoRA.

Shapes: L nodes, C d_comp, I inputs, O outputs, G intervals, K = G + 3 cubic B-splines
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.adapters.graph.composers import ResidualSequential

__all__ = ["KAN", "SplineLinear"]

_DEGREE = 3


class SplineLinear(nn.Module):
    """y_o = sum_i f_oi(tanh x_i), each f_oi a cubic spline of its own on [-1, 1].

    Computed as a linear layer on K B-splines of each input, with K times its parameters. tanh keeps
    the input on the grid, outside of which splines are zero and learn nothing. Starts at zero.
    Source: Liu et al. 2024, arXiv:2404.19756, without the SiLU branch, which the skip of the chain
    replaces.
    """

    knots: Tensor

    def __init__(self, inputs: int, outputs: int, intervals: int = 5) -> None:
        super().__init__()
        step = 2 / intervals
        knots = torch.arange(-_DEGREE, intervals + _DEGREE + 1) * step - 1
        self.register_buffer("knots", knots, persistent=False)
        self.weight = nn.Parameter(torch.zeros(outputs, inputs * (intervals + _DEGREE)))

    def bases(self, x: Tensor) -> Tensor:
        """B-splines (..., I, K) of numbers (..., I) in [-1, 1], by Cox and de Boor's recursion."""
        x, t = x.unsqueeze(-1), self.knots.to(x.dtype)
        found = ((x >= t[:-1]) & (x < t[1:])).to(x.dtype)
        for k in range(1, _DEGREE + 1):
            left = (x - t[: -k - 1]) / (t[k:-1] - t[: -k - 1])
            right = (t[k + 1 :] - x) / (t[k + 1 :] - t[1:-k])
            found = left * found[..., :-1] + right * found[..., 1:]
        return found

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        return F.linear(self.bases(torch.tanh(x)).flatten(-2), self.weight)


class KAN(ResidualSequential):
    """`ResidualSequential` with a layer of splines as Phi_i, of (G + 3) C * C numbers.

    KoRA is named after the Kolmogorov-Arnold theorem, but its linear maps with GELU do not follow
    from it. The layer is our own, as the best known library (pykan) has had no release since 0.2.8
    of November 2024.

    Args:
        intervals: G, the intervals of the grid.

    Raises:
        ValueError: For fewer than one interval.
    """

    def __init__(self, intervals: int = 5) -> None:
        super().__init__()
        if intervals < 1:
            raise ValueError(f"KAN: intervals={intervals}, expected 1 or more.")
        self.intervals = intervals

    def stage(self, d_comp: int) -> nn.Module:
        """One Phi, (..., C) to (..., C); zero at the start."""
        return SplineLinear(d_comp, d_comp, self.intervals)
