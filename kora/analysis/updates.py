"""What LoRA, DoRA, SSF and BitFit have changed in a backbone, from their weights alone.

Shapes: O output width, I input width, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from kora.adapters import KoRA, LoRA, LowRankDelta, Strategy
from kora.adapters.base import place_of
from kora.adapters.bitfit import BitFit
from kora.adapters.dora import Direction, DoRA
from kora.adapters.ssf import SSF, Affine
from kora.analysis.low_rank import norm, singular_values
from kora.analysis.quantity import Place, Quantity, Spectrum
from kora.backbone.rewrites import frozen_layer
from kora.backbone.sites import find_sites
from kora.backbone.vit import Backbone

__all__ = ["bias_changes", "direction_changes", "low_rank_changes", "places_of", "scale_changes"]

Deltas = Mapping[str, LowRankDelta]


def places_of(strategy: Strategy, keys: Iterable[str]) -> dict[str, Place]:
    """Block and site of the modules of a strategy by their keys (`b03_qkv`)."""
    return {key: place_of(f"adapters.{key}.weight") for key in keys}


@torch.no_grad()
def low_rank_changes(
    strategy: LoRA | KoRA, backbone: Backbone, deltas: Deltas
) -> list[Quantity | Spectrum]:
    """The norm of alpha B A, alone and relative to that of the frozen rows, and its spectrum."""
    places, weights = places_of(strategy, deltas), _frozen_rows(strategy, backbone)
    norms, shares, spectra = {}, {}, {}
    for key, delta in deltas.items():
        place, up_OR = places[key], delta.alpha * delta.up_OR
        norms[place] = norm(up_OR, delta.down_RI)
        shares[place] = norms[place] / _frobenius(weights[key])
        spectra[place] = singular_values(up_OR, delta.down_RI).tolist()
    what = "alpha B A, the update of a site's weight"
    return [
        Quantity("update_norm", "||alpha B A||", f"Frobenius norm of {what}.", norms),
        Quantity(
            "update_share", "||alpha B A|| / ||W||",
            f"Frobenius norm of {what}, over that of the frozen weight W (of the same rows).",
            shares,
        ),
        Spectrum(
            "update_singular_value", "singular values of alpha B A",
            f"Singular values of {what}, from the QR decompositions of both factors.", spectra,
        ),
    ]  # fmt: skip


@torch.no_grad()
def direction_changes(strategy: DoRA, backbone: Backbone) -> list[Quantity | Spectrum]:
    """For DoRA: the change of the rows' lengths, and of the whole weight."""
    places, weights = places_of(strategy, strategy.deltas), _frozen_rows(strategy, backbone)
    lengths, wholes = {}, {}
    for key, delta in strategy.deltas.items():
        assert isinstance(delta, Direction)
        weight_OI = weights[key]
        before_O = torch.linalg.vector_norm(weight_OI.double(), dim=1)
        after_O = delta.magnitude_O.double()
        lengths[places[key]] = _frobenius(after_O - before_O) / _frobenius(before_O)
        wholes[places[key]] = _frobenius(delta.folded(weight_OI) - weight_OI) / _frobenius(
            weight_OI
        )
    return [
        Quantity(
            "length_share", "||m - m0|| / ||m0||",
            "Norm of the change of the rows' lengths m, over that of the lengths m0 of the frozen "
            "weight.",
            lengths,
        ),
        Quantity(
            "change_share", "||W' - W|| / ||W||",
            "Frobenius norm of the change of the whole weight, with direction and lengths, over "
            "that of the frozen weight.",
            wholes,
        ),
    ]  # fmt: skip


@torch.no_grad()
def scale_changes(strategy: SSF) -> list[Quantity | Spectrum]:
    """For SSF: how far scales are from 1 and shifts from 0, by layer."""
    scales: dict[Place, float] = {}
    shifts: dict[Place, float] = {}
    for kind in ("inner_affines", "outer_affines"):
        for key, affine in getattr(strategy, kind).items():
            assert isinstance(affine, Affine)
            place = place_of(f"{kind}.{key}.scale_O")
            scales[place] = _root_mean_square(affine.scale_O - 1)
            shifts[place] = _root_mean_square(affine.shift_O)
    return [
        Quantity("scale_rms", "scale - 1", "Root mean square of scale - 1 over channels.", scales),
        Quantity("shift_rms", "shift", "Root mean square of the shift over channels.", shifts),
    ]


@torch.no_grad()
def bias_changes(strategy: BitFit, original: Backbone) -> list[Quantity | Spectrum]:
    """For BitFit: how much the biases have changed, by layer; `original` has the initial ones."""
    squares: dict[Place, float] = {}
    before: dict[Place, float] = {}
    for name, bias in strategy.trainable():
        place = place_of(name)
        start = original.model.get_parameter(name)
        squares[place] = squares.get(place, 0.0) + _frobenius(bias - start) ** 2
        before[place] = before.get(place, 0.0) + _frobenius(start) ** 2
    norms = {place: math.sqrt(one) for place, one in squares.items()}
    shares = {
        place: math.sqrt(one / before[place]) if before[place] else None
        for place, one in squares.items()
    }
    return [
        Quantity("bias_norm", "||b - b0||", "Norm of the change of a layer's bias.", norms),
        Quantity(
            "bias_share", "||b - b0|| / ||b0||",
            "Norm of the change of a layer's bias, over that of the frozen one; none where that "
            "is zero.",
            shares,
        ),
    ]  # fmt: skip


def _frozen_rows(strategy: LoRA | KoRA, backbone: Backbone) -> dict[str, Tensor]:
    """The frozen weight (O, I) of each site, its own rows only, by key."""
    at = strategy.node_form.injection if isinstance(strategy, KoRA) else strategy
    assert at is not None, "nothing is injected"
    allow = bool(getattr(at, "allow_dead_sites", False))
    sites = find_sites(backbone, at.sites, blocks=at.blocks, allow_dead_sites=allow)
    return {
        site.key: frozen_layer(backbone, site.path).weight.detach()[slice(*(site.rows or (None,)))]
        for site in sites
    }


def _frobenius(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.detach().cpu().double()))


def _root_mean_square(tensor: Tensor) -> float:
    return _frobenius(tensor) / math.sqrt(tensor.numel())
