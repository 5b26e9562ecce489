"""Export as weights of timm's plain model: adapter folded in, head as its classifier.

Shapes: B images, K classes, D width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kora.export.check import Written, compared_pictures, creation, linear_head
from kora.export.prepare import USE, write_prepare
from kora.heads import LinearHead
from kora.tasks.load import AdaptedModel

__all__ = ["WEIGHTS", "classifier_names", "merged_model", "merged_state", "with_head", "write"]

WEIGHTS = "model.safetensors"


def write(model: AdaptedModel, folder: Path) -> Written:
    """Write `model.safetensors`, and compare timm's model with these weights.

    Raises:
        ValueError: If the strategy cannot be folded into the weights, or the head is no classifier.
    """
    state = merged_state(model)
    save_file(state, folder / WEIGHTS)
    plain = merged_model(model, load_file(folder / WEIGHTS))
    write_prepare(model, folder, pixels=False)
    with torch.inference_mode():
        difference, largest = compared_pictures(model, folder, plain)
    classes = linear_head(model, "timm").linear.out_features
    imports, create = creation(model.backbone, classes)
    return Written(
        load=(
            *imports,
            "from safetensors.torch import load_file",
            f"model = {create}.eval()",
            f"model.load_state_dict(load_file('FOLDER/{WEIGHTS}'))",
        ),
        use=(*USE, "logits = model(prepare('photo.jpg'))"),
        details={"weights": WEIGHTS, "num_classes": classes},
        difference=difference,
        largest=largest,
    )


def merged_state(model: AdaptedModel) -> dict[str, Tensor]:
    """Weights of timm's model with the adapter folded in (float32) and the head as classifier.

    Raises:
        ValueError: As `write`.
    """
    head = linear_head(model, "timm")
    return with_head(model, model.adapter.merged(model.backbone), head)


def with_head(model: AdaptedModel, state: dict[str, Tensor], head: LinearHead) -> dict[str, Tensor]:
    """A state of the backbone with the head as timm's classifier: float32, no shared storage."""
    names = classifier_names(model)
    kept = {k: v for k, v in state.items() if k.rpartition(".")[0] not in names}
    for name in names:  # two of them are averaged, as the pooled vector was
        kept |= {f"{name}.{key}": tensor for key, tensor in head.linear.state_dict().items()}
    plain = {k: v.float() if v.is_floating_point() else v for k, v in kept.items()}
    return {k: v.detach().clone().contiguous() for k, v in plain.items()}


def merged_model(model: AdaptedModel, state: dict[str, Tensor]) -> Any:
    """timm's plain model with these weights, in eval mode."""
    plain = model.backbone.plain_model(linear_head(model, "timm").linear.out_features)
    plain.load_state_dict(state)
    return plain.eval()


def classifier_names(model: AdaptedModel) -> tuple[str, ...]:
    """Paths of timm's classifier: one, or the two of a distilled model."""
    named = model.backbone.model.pretrained_cfg.get("classifier") or "head"
    return (named,) if isinstance(named, str) else tuple(named)
