"""A ready model from the adapter folder of a run: `kora.load_adapter`.

Shapes: B images, K classes, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kora import checkpoints
from kora.adapter_folder import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    check_keys,
    expand,
    read_adapter_config,
    read_adapter_tensors,
)
from kora.adapter_record import preprocessing, rebuild
from kora.adapters import FullFineTune, Strategy
from kora.backbones import Backbone
from kora.tasks import AdapterTask, DepthTask

__all__ = [
    "AdaptedModel",
    "Prediction",
    "adapter_folder",
    "load_adapter",
    "load_backbone",
    "named_device",
]


class Prediction(NamedTuple):
    """The most probable class of one image."""

    name: str  # its number where the data had no names
    probability: float
    label: int


class AdaptedModel(nn.Module):
    """Backbone, adapter and head of a run, in eval mode, with nothing that trains.

    Args:
        task: Built and loaded.
        record: The JSON of its adapter folder.
        folder: That folder.
    """

    def __init__(self, task: AdapterTask, record: Mapping[str, Any], folder: Path) -> None:
        super().__init__()
        self.task = task.requires_grad_(False)
        self.record = dict(record)
        self.folder = folder
        self.class_names: list[str] = list(record.get("class_names") or ())
        self.eval()

    @property
    def backbone(self) -> Backbone:
        """The backbone, with the adapter hooked in."""
        return self.task.backbone

    @property
    def adapter(self) -> Strategy:
        """The strategy."""
        return self.task.adapter

    @property
    def head(self) -> nn.Module:
        """What sits on the features."""
        assert self.task.head is not None
        return self.task.head

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What happens to an image before the model of timm; of early folders without a loader."""
        return dict(self.record.get("preprocessing") or preprocessing(self.backbone))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K), or depth in metres (B, H, W), of uint8 images (B, 3, H, W), any size.

        Raises:
            ValueError: For images of another type, range or shape.
        """
        images = images.to(self.device)
        if isinstance(self.task, DepthTask):
            size = (images.shape[-2], images.shape[-1])
            return self.task.at_size(self.task.flipped_mean(images), size)
        output: Tensor = self.task(images)
        return output

    @torch.inference_mode()
    def predict(self, images: Tensor) -> list[Prediction]:
        """The most probable class of each of (B, 3, H, W) images, with its name and probability.

        Raises:
            ValueError: If the model is none of classes, or as `forward`.
        """
        if isinstance(self.task, DepthTask):
            raise ValueError(
                f"{self.folder} is a model of depth, which has no classes. Call the model itself: "
                "it gives metres."
            )
        best = self(images).float().softmax(dim=-1).max(dim=-1)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [Prediction(self.name_of(label), sure, label) for label, sure in pairs]

    def name_of(self, label: int) -> str:
        """Name of a class, or its number where the data had no names."""
        return self.class_names[label] if self.class_names else str(label)


def load_adapter(
    path: str | Path, *, weights: str | None = None, device: str | torch.device = "cpu"
) -> AdaptedModel:
    """The model of a run, ready for images: verified backbone, adapter, head, eval mode.

    Args:
        path: A run's folder, or the folder `adapter` in it.
        weights: Where the backbone's weights are by now, as in `Backbone`; None: where the run took
            them from. They have to be the same weights.
        device: Where to put the model.

    Raises:
        FileNotFoundError: If there is no adapter folder, or no file of weights.
        ValueError: If the frozen weights are not those of the run, or anything does not fit.
        RuntimeError: If a file is damaged, or weights cannot be fetched.
    """
    folder = adapter_folder(path)
    record = read_adapter_config(folder)
    origin = str(folder / ADAPTER_CONFIG)
    adapter = rebuild(_without_sources(record["adapter"]), origin=origin)
    if not isinstance(adapter, Strategy):
        raise ValueError(f"{origin} names {type(adapter).__name__}, which is no strategy.")
    tensors = read_adapter_tensors(folder)
    head = {k.removeprefix("head."): v for k, v in tensors.items() if k.startswith("head.")}
    full = isinstance(adapter, FullFineTune)
    backbone = _backbone(record, weights or ("random" if full else None), str(folder))
    if full:
        # It has every weight of its own: what they started from need not be there any more.
        backbone.__dict__["sha256"] = record["backbone"]["sha256"]
    elif backbone.sha256 != record["backbone"]["sha256"]:
        raise ValueError(_other_weights(record, backbone, folder))
    task = _task(record, backbone, adapter, head, origin)
    if adapter.missing():
        checkpoints.recall_adapter(folder, adapter)
    task.build()
    checkpoints.load_adapter(folder, task.adapter, task.backbone)
    assert task.head is not None
    mine = task.head.state_dict(keep_vars=True)
    check_keys(mine, head, f"The head in {folder / ADAPTER_WEIGHTS}")
    with torch.no_grad():
        for name, tensor in mine.items():
            tensor.copy_(head[name])
    return AdaptedModel(task, record, folder).to(device)


def load_backbone(
    path: str | Path, *, weights: str | None = None, device: str | torch.device = "cpu"
) -> Backbone:
    """The frozen backbone that a run started from, verified, with nothing hooked in.

    Args and errors are those of `load_adapter`.
    """
    folder = adapter_folder(path)
    record = read_adapter_config(folder)
    backbone = _backbone(record, weights, str(folder))
    if backbone.sha256 != record["backbone"]["sha256"]:
        raise ValueError(_other_weights(record, backbone, folder))
    return backbone.to(device)


def named_device(name: str) -> torch.device:
    """The device of an option --device; `auto` is the GPU where there is one.

    Raises:
        ValueError: It cannot be used here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here: {reason}") from error
    return device


def adapter_folder(path: str | Path) -> Path:
    """The adapter folder that a path means: itself, or that of a run."""
    folder = expand(path)
    inner = folder / "adapter"
    return inner if (inner / ADAPTER_CONFIG).is_file() else folder


def _without_sources(described: Mapping[str, Any]) -> dict[str, Any]:
    return {key: described[key] for key in ("class_path", "init_args")}


def _backbone(record: Mapping[str, Any], weights: str | None, folder: str) -> Backbone:
    known = record["backbone"]
    origin = record.get("weights") or {}
    size = known.get("image_size")
    source = weights or origin.get("source", "pretrained")
    try:
        return Backbone(
            known["name"],
            weights=source,
            image_size=tuple(size) if isinstance(size, list) else size,
            keep_classifier=bool(origin.get("keep_classifier", False)),
            mean=known.get("mean"),
            std=known.get("std"),
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder} belongs to weights of '{known['name']}' in {source}, and no such file is "
            f"here: name where it lies now (weights=, or --weights). SHA-256 of the weights: "
            f"{known['sha256'][:12]}."
        ) from error


def _other_weights(record: Mapping[str, Any], backbone: Backbone, folder: Path) -> str:
    theirs, origin = record["backbone"], record.get("weights") or {}
    start = (
        f"{folder} was trained on '{theirs['name']}' with weights {theirs['sha256'][:12]}, and "
        f"'{backbone.weights}' gives {backbone.sha256[:12]}. "
    )
    if origin.get("source") == "random" and backbone.weights == "random":
        return start + (
            "The run drew its frozen weights at random, and did not keep them: nothing can bring "
            "them back. Train on weights that are in a file."
        )
    return start + "Give the file of those weights (weights=, or --weights)."


def _task(
    record: Mapping[str, Any],
    backbone: Backbone,
    adapter: Strategy,
    head: Mapping[str, Tensor],
    origin: str,
) -> AdapterTask:
    described = record.get("task")
    if described is None and set(head) == {"linear.weight", "linear.bias"}:  # of earlier versions
        described = {
            "class_path": "kora.tasks.ClassificationTask",
            "init_args": {"num_classes": len(head["linear.bias"])},
        }
    if described is None:
        raise ValueError(
            f"{origin} does not say which task and head it is of: it was written by kora "
            f"{record.get('kora_version')}, or by a task of your own. Use its checkpoint with the "
            "config.yaml beside it."
        )
    arguments = {"backbone": backbone, "adapter": adapter, **described["init_args"]}
    task = rebuild({**described, "init_args": arguments}, origin=origin)
    if not isinstance(task, AdapterTask):
        raise ValueError(f"{origin} names {described['class_path']}, which is no task of kora.")
    return task
