"""Read-outs of a trained adapter, by block and site."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kora.adapters import AdapterFusion, Bottleneck, KoRA, LoRA, LowRankDelta, Strategy
from kora.adapters.bitfit import BitFit
from kora.adapters.dora import DoRA
from kora.adapters.graph.nodes import Node
from kora.adapters.ssf import SSF
from kora.adapters.vpt import VPT
from kora.analysis.composition import Contributions, projection_spectrum
from kora.analysis.quantity import Place, Quantity, Spectrum
from kora.analysis.tokens import AdapterShares, PromptShares
from kora.analysis.updates import (
    bias_changes,
    direction_changes,
    low_rank_changes,
    places_of,
    scale_changes,
)
from kora.backbone.vit import Backbone
from kora.reports.fusion import FusionReport
from kora.tasks.load import AdaptedModel
from kora.training.node_gradients import COMPOSED, GradientNorms

__all__ = [
    "READABLE", "ReadOut", "gradient_quantities", "measured_gradients", "needs_images", "read_out",
    "require_readable",
]  # fmt: skip

READABLE: tuple[type[Strategy], ...] = (
    KoRA, LoRA, AdapterFusion, Bottleneck, SSF, BitFit, VPT
)  # fmt: skip
_FROM_IMAGES = (KoRA, AdapterFusion, Bottleneck, VPT)

Images = Callable[[], Iterator[Tensor]]  # gives batches (B, 3, H, W)


@dataclass
class ReadOut:
    """The read-outs of one adapter."""

    quantities: list[Quantity | Spectrum] = field(default_factory=list)
    scalars: dict[str, float | None] = field(default_factory=dict)  # of the adapter as a whole
    notes: list[str] = field(default_factory=list)  # what a reader of the numbers has to know
    fusion: FusionReport | None = None  # the attention of a fusion, with its own table and picture


def require_readable(strategy: Strategy) -> None:
    """Refuse a strategy without read-outs.

    Raises:
        ValueError: It has none; the message names those that have.
    """
    if not isinstance(strategy, READABLE):
        names = ", ".join(kind.__name__ for kind in READABLE)
        raise ValueError(
            f"There is nothing to read out of {strategy.label}. kora inspect reads runs of: "
            f"{names}, and what derives from these (DoRA, LowRankFusion)."
        )


def needs_images(strategy: Strategy) -> bool:
    """Whether images are needed; otherwise the weights are enough."""
    return isinstance(strategy, _FROM_IMAGES)


def read_out(model: AdaptedModel, images: Images) -> ReadOut:
    """All read-outs of a model, from its weights and, if `needs_images`, from these images.

    Raises:
        ValueError: As `require_readable`.
    """
    strategy = model.adapter
    require_readable(strategy)
    if isinstance(strategy, KoRA):
        return _composition(model, strategy, images)
    if isinstance(strategy, LoRA):  # also DoRA
        deltas = {k: d for k, d in strategy.deltas.items() if isinstance(d, LowRankDelta)}
        found = low_rank_changes(strategy, model.backbone, deltas)
        if isinstance(strategy, DoRA):
            found += direction_changes(strategy, model.backbone)
        return ReadOut(found)
    if isinstance(strategy, AdapterFusion):
        return _attention(model, strategy, images)
    if isinstance(strategy, SSF):
        return ReadOut(scale_changes(strategy))
    if isinstance(strategy, BitFit):
        return ReadOut(bias_changes(strategy, _original(model.backbone)))
    listener: AdapterShares | PromptShares
    if isinstance(strategy, Bottleneck):
        listener = AdapterShares(strategy)
    else:
        assert isinstance(strategy, VPT)
        listener = PromptShares(strategy, model.backbone)
    with listener.listening():
        _pass(model, images)
    return ReadOut(listener.quantities())


def gradient_quantities(
    strategy: KoRA, readings: list[dict[str, Any]]
) -> tuple[list[Quantity | Spectrum], dict[str, float | None]]:
    """For each recorded step: the gradient at every node and at c_L, and the redundancy."""
    found: list[Quantity | Spectrum] = []
    scalars: dict[str, float | None] = {}
    for number, reading in enumerate(readings, start=1):
        step, last = reading["step"], number == len(readings)
        name = "gradient_last" if last else f"gradient_step_{step}"
        title = f"gradient at p, step {step}" + " (last)" * last
        text = (
            f"Norm of the gradient of an image's own loss with respect to p_i of that image, mean "
            f"over the {reading['images']} training images of optimiser step {step}."
        )
        found.append(_gradient(strategy, name, title, text, reading["nodes"]))
        scalars[f"{name}_composed"] = reading[COMPOSED]
        if "redundancy" in reading:  # not in early files
            scalars[f"{name}_redundancy"] = reading["redundancy"]
    return found, scalars


def measured_gradients(
    model: AdaptedModel, strategy: KoRA, batch: dict[str, Tensor]
) -> tuple[Quantity, float]:
    """The gradient at every node, and at c_L, with the final weights on training images."""
    norms = GradientNorms(list(strategy.nodes))
    strategy.observer = norms.observe
    strategy.requires_grad_(True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You are trying to `self.log")
            loss = model.task.training_step({k: v.to(model.device) for k, v in batch.items()}, 0)
        assert isinstance(loss, Tensor)
        loss.backward()  # type: ignore[no-untyped-call]
    finally:
        strategy.observer = None
        strategy.requires_grad_(False)
        strategy.zero_grad(set_to_none=True)
    means = norms.means()
    composed = means.pop(COMPOSED)
    text = (
        "Norm of the gradient of an image's own loss with respect to p_i of that image, with the "
        f"final weights, mean over {norms.images} training images, which were not augmented."
    )
    title = "gradient at p, final weights"
    return _gradient(strategy, "gradient_final_weights", title, text, means), composed


def _gradient(strategy: KoRA, name: str, title: str, text: str, norms: dict[str, Any]) -> Quantity:
    values = _by_place(strategy, norms)
    return Quantity(name, title, text, values, family="gradient")


def _composition(model: AdaptedModel, strategy: KoRA, images: Images) -> ReadOut:
    contributions = Contributions(strategy)
    strategy.observer = contributions.observe
    try:
        _pass(model, images)
    finally:
        strategy.observer = None
    nodes = {key: node for key, node in strategy.nodes.items() if isinstance(node, Node)}
    places = places_of(strategy, nodes)
    factored = any(node.projection()[1] is not None for node in nodes.values())
    matrix, symbol = ("P B A", "P_i B_i A_i") if factored else ("M", "M_i")
    found: list[Quantity | Spectrum] = [
        Quantity(
            "contribution", "contribution to c_L",
            "Norm of the change of c_L when p_i is set to zero and all other nodes are as they "
            "are, over the norm of c_L; both summed over the images. Computed in float64: what is "
            "below 1e-15 is rounding.",
            _by_place(strategy, contributions.shares()),
        ),
        Quantity(
            "vector_norm", "||p||", "Norm of p_i, the mean over the images.",
            _by_place(strategy, contributions.vector_norms()),
        ),
        Spectrum(
            "singular_value", f"singular values of {matrix}",
            f"Singular values of {symbol}, which maps what the node reads to p_i"
            + ("; from the QR decompositions of the small factors." if factored else "."),
            {places[key]: projection_spectrum(node) for key, node in nodes.items()},
        ),
    ]  # fmt: skip
    if strategy.parts():
        found += low_rank_changes(strategy, model.backbone, strategy.parts())
    scalars: dict[str, float | None] = {"composed_norm": contributions.composed_norm}
    return ReadOut(found, scalars | {"redundancy": contributions.redundancy})


def _attention(model: AdaptedModel, strategy: AdapterFusion, images: Images) -> ReadOut:
    report = FusionReport(strategy)
    report.begin()
    _pass(model, images)
    strategy.watch(False)
    rows = []
    for place in strategy.fused().values():
        assert place.share_N is not None, "no image has passed"
        rows.append(place.share_N.double().cpu().numpy())
    report.shares = np.stack(rows)
    places = places_of(strategy, strategy.fused()).values()
    found: list[Quantity | Spectrum] = [
        Quantity(
            f"attention_{number}",
            f"attention to {source.name}",
            f"Share of the attention that goes to {source.name}, mean over all tokens of all "
            "images.",
            {place: float(row[number]) for place, row in zip(places, rows, strict=True)},
            family="attention",
        )
        for number, source in enumerate(strategy.earlier_runs.found)
    ]
    return ReadOut(found, fusion=report)


@torch.inference_mode()
def _pass(model: AdaptedModel, images: Images) -> None:
    for batch in images():
        model.task.features(batch.to(model.device))


def _by_place(strategy: KoRA, values: dict[str, Any]) -> dict[Place, float | None]:
    places = places_of(strategy, strategy.nodes)
    return {place: values.get(key) for key, place in places.items()}


def _original(backbone: Backbone) -> Backbone:
    """The backbone before its own tensors were trained."""
    return Backbone(
        backbone.name,
        weights=backbone.weights,
        image_size=backbone.image_size,
        keep_classifier=backbone.keep_classifier,
        mean=backbone.normalisation.get("mean"),
        std=backbone.normalisation.get("std"),
    )
