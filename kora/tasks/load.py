"""A ready model from the adapter folder of a run: `kora.load_adapter`.

Shapes: B images, K classes, C channels, H and W pixels, h and w those at which the backbone runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from datamodules.recipe import ImageRecipe
from kora.adapters import FullFineTune, Strategy
from kora.adapters import folder as adapter_files
from kora.adapters.folder import (
    ADAPTER_WEIGHTS,
    check_keys,
    read_adapter_tensors,
)
from kora.adapters.hub import downloaded, is_on_hub
from kora.backbone.images import check_images, resized
from kora.backbone.vit import Backbone
from kora.backbone.weights import without_numbers
from kora.console.errors import first_line
from kora.heads.detection import Boxes
from kora.runs.adapter_config import (
    ADAPTER_CONFIG,
    local_adapter_folder,
    read_adapter_config,
)
from kora.runs.durable import expand
from kora.runs.trust import build, build_arguments
from kora.tasks import (
    AdapterTask,
    ClassificationTask,
    DepthTask,
    DetectionTask,
    SegmentationTask,
)
from kora.tasks.adapter_record import preprocessing, recipe_of
from kora.tasks.image_files import image_files

__all__ = [
    "AdaptedModel",
    "Choice",
    "Detection",
    "Picture",
    "Prediction",
    "adapter_folder",
    "expanded",
    "file_of",
    "fitted",
    "load_adapter",
    "load_backbone",
    "load_onto",
    "named_device",
]


class Choice(NamedTuple):
    """A class, and how probable the model finds it."""

    name: str  # its number if the data had no names
    probability: float
    label: int


class Prediction(NamedTuple):
    """The most probable class of one picture, and the next ones."""

    name: str  # its number if the data had no names
    probability: float
    label: int
    top: tuple[Choice, ...]  # as many as were asked for, the most probable first
    source: str = ""  # the file, if the picture was one


class Detection(NamedTuple):
    """An object that was found in a picture."""

    name: str  # of its class; the number if the data had no names
    score: float
    box: tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels of the picture
    label: int


#: A picture as `predict` takes it: see `ImageRecipe`.
Picture = str | os.PathLike[str] | Image.Image | NDArray[Any] | Tensor


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
        #: Prepares a picture as the run prepared its images.
        try:
            self.recipe = recipe_of(record)
        except (ValueError, TypeError, LookupError) as error:
            raise ValueError(
                f"{folder / ADAPTER_CONFIG}: this version does not know its preprocessing "
                f"({error!r})."
            ) from error
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
        """The head on the features."""
        assert self.task.head is not None
        return self.task.head

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What happens to a picture before the model of timm: steps in their order."""
        return preprocessing(self.backbone, self.recipe)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def forward(self, images: Tensor) -> Tensor | list[Boxes]:
        """Outputs for uint8 images (B, 3, H, W) of any size.

        Of classes, logits (B, K); of depth, metres (B, H, W); of segmentation, scores (B, K, H, W),
        whose highest is the class of a pixel; of detection, for each image a dict of `boxes`
        (n, 4), which are x1, y1, x2, y2, `scores` (n,) and `labels` (n,), the best first. Images of
        another size than in training are first fitted by `recipe`, like a photo with these pixels,
        so `model(images)`, `predict` and `detect` agree. Depth, scores and boxes are at the size of
        the images, without what the recipe cuts off.

        Raises:
            ValueError: For images of another type, range or shape.
        """
        check_images(images)
        size = self.recipe.shown((images.shape[-2], images.shape[-1]))
        images = fitted(images, self.recipe).to(self.device)
        if isinstance(self.task, DepthTask):
            return self.task.at_size(self.task.flipped_mean(images), size)
        if isinstance(self.task, SegmentationTask):
            return torch.stack(list(self.task.scores_of({"image": images}, [size] * len(images))))
        answer: Tensor | list[Boxes] = self.answer(self.task(images), size)
        return answer

    def answer(self, output: Any, size: tuple[int, int]) -> Any:
        """What `forward` gives, from the head's output for pictures of this size."""
        if isinstance(self.task, DetectionTask):
            return self.task.own_boxes(output, [size] * len(output[0]), self.recipe)
        return self.task.answer(output, size)

    @overload
    def predict(
        self, pictures: Sequence[Picture], *, top_k: int = 1, batch_size: int = 64
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self, pictures: Picture, *, top_k: int = 1, batch_size: int = 64
    ) -> Prediction | list[Prediction]: ...

    def predict(
        self, pictures: Picture | Sequence[Picture], *, top_k: int = 1, batch_size: int = 64
    ) -> Prediction | list[Prediction]:
        """Classes with their names and probabilities, of one picture or of several.

        One picture is a path, a PIL image, an array (H, W) or (H, W, C), or a tensor (C, H, W), and
        gives one `Prediction`. A list of these, an array (B, H, W, C), a tensor (B, C, H, W), or a
        folder (its images at any depth, sorted) gives a list. All are prepared by `recipe`.

        Args:
            pictures: One or several.
            top_k: How many classes each prediction names; at most all of them.
            batch_size: Pictures that pass through the model at once.

        Raises:
            ValueError: If the model predicts no classes, or a folder holds no image.
            UnreadableImageError: If a picture cannot be read.
        """
        for kind, (what, call, files) in _NO_CLASS_OF_A_PICTURE.items():
            if isinstance(self.task, kind):
                raise ValueError(
                    f"{self.folder} is a model of {what}. Call {call}; or kora predict RUN "
                    f"--images FOLDER, which writes {files}."
                )
        if top_k < 1 or batch_size < 1:
            raise ValueError(f"top_k={top_k}, batch_size={batch_size}: expected 1 or more.")
        several, single = _several(pictures)
        found: list[Prediction] = []
        for start in range(0, len(several), batch_size):
            some = several[start : start + batch_size]
            inputs = [self.prepare(picture) for picture in some]
            ranked = self.ranked(torch.cat(inputs), top_k)
            found += [
                Prediction(*top[0], top, file_of(picture))
                for top, picture in zip(ranked, some, strict=True)
            ]
        return found[0] if single else found

    @torch.inference_mode()
    def detect(self, picture: Picture) -> list[Detection]:
        """The objects in one picture, the best first, with boxes in its own pixels, upright.

        Raises:
            ValueError: If the model predicts no boxes.
            UnreadableImageError: If the picture cannot be read.
        """
        if not isinstance(self.task, DetectionTask):
            raise ValueError(
                f"{self.folder} is a model of {type(self.task).__name__}, which finds no boxes. "
                "Use predict for classes, or call the model itself."
            )
        opened = self.recipe.open(expanded(picture))
        size = self.recipe.shown((opened.height, opened.width))
        output = self.task(self.prepare(opened).to(self.device))
        return self.detected(self.answer(output, size)[0])

    def detected(self, boxes: Boxes) -> list[Detection]:
        """The boxes of one image, as `forward` gives them, with the names of their classes."""
        columns = (boxes[key].tolist() for key in ("scores", "boxes", "labels"))
        return [
            Detection(self.name_of(label), score, tuple(box), label)
            for score, box, label in zip(*columns, strict=True)
        ]

    def prepare(self, picture: Picture) -> Tensor:
        """A picture as the backbone reads it: (1, 3, h, w) in [0, 1], before the normalisation.

        Raises:
            UnreadableImageError: If it cannot be read.
        """
        pixels = torch.from_numpy(self.recipe(expanded(picture)))
        return resized(pixels[None], self.backbone.size, self.backbone.interpolation)

    @torch.inference_mode()
    def ranked(self, inputs: Tensor, top_k: int) -> list[tuple[Choice, ...]]:
        """The most probable classes of each input that `prepare` gave."""
        return self.named(self.task(inputs.to(self.device)), top_k)

    def named(self, logits: Tensor, top_k: int) -> list[tuple[Choice, ...]]:
        """The most probable classes by logits (B, K)."""
        shares = logits.float().softmax(dim=-1)
        best = shares.topk(min(top_k, shares.shape[-1]), dim=-1)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [
            tuple(Choice(self.name_of(k), p, k) for k, p in zip(labels, sure, strict=True))
            for labels, sure in pairs
        ]

    def name_of(self, label: int) -> str:
        """Name of a class, or its number if the data had no names."""
        return self.class_names[label] if self.class_names else str(label)


#: By task: what it predicts instead of classes, what to call, and what the command writes.
_NO_CLASS_OF_A_PICTURE: dict[type[AdapterTask], tuple[str, str, str]] = {
    DepthTask: ("depth, which has no classes", "the model itself: it gives metres", "maps"),
    SegmentationTask: (
        "segmentation, whose classes are of pixels",
        "the model itself: it gives scores of each pixel",
        "masks",
    ),
    DetectionTask: (
        "detection, whose classes are of boxes",
        "detect(picture): it gives boxes with their classes",
        "predictions.json",
    ),
}


def fitted(images: Tensor, recipe: ImageRecipe) -> Tensor:
    """Images (B, 3, H, W) at the size of a recipe, each as the recipe prepares a photo."""
    if recipe.size in (None, (images.shape[-2], images.shape[-1])):
        return images
    return torch.stack([torch.from_numpy(recipe(image)) for image in images])


def expanded(picture: Picture) -> Picture:
    """The picture; as a path, with `~` and environment variables expanded."""
    return expand(picture) if isinstance(picture, str) else picture


def file_of(picture: Picture) -> str:
    """The path of a picture; empty if it is none."""
    return os.fspath(picture) if isinstance(picture, (str, os.PathLike)) else ""


def _several(pictures: Picture | Sequence[Picture]) -> tuple[Sequence[Picture], bool]:
    """A list of pictures, and whether it stands for a single one."""
    if isinstance(pictures, (str, os.PathLike)):
        path = expand(os.fspath(pictures))
        return (image_files(path)[0], False) if path.is_dir() else ([path], True)
    if isinstance(pictures, (list, tuple)):
        return [expanded(picture) for picture in pictures], False
    if isinstance(pictures, (Tensor, np.ndarray)) and pictures.ndim == 4:
        return list(pictures), False
    return [pictures], True  # type: ignore[list-item]


def load_adapter(
    path: str | Path,
    *,
    weights: str | None = None,
    device: str | torch.device = "cpu",
    trust: Sequence[str] = (),
) -> AdaptedModel:
    """The model of a run, ready for images: verified backbone, adapter, head, eval mode.

    Args:
        path: A run's folder, the folder `adapter` in it, or `hf://OWNER/NAME`.
        weights: Where the backbone's weights are now, as in `Backbone`; None: where the run took
            them from. They must be the same weights.
        device: Where to put the model.
        trust: Modules of your own whose classes the folder may name, besides those of KoRA.

    Raises:
        FileNotFoundError: If there is no adapter folder, or no file of weights.
        ValueError: If the frozen weights are not those of the run, or anything does not fit.
        RuntimeError: If a file is damaged, or weights cannot be fetched.
    """
    return load_onto(path, None, weights=weights, trust=trust).to(device)


def load_onto(
    path: str | Path,
    backbone: Backbone | None,
    *,
    weights: str | None = None,
    trust: Sequence[str] = (),
) -> AdaptedModel:
    """As `load_adapter`, attached to this backbone, which may hold other adapters already.

    Raises:
        ValueError: Also if the run belongs to another backbone.
    """
    folder = adapter_folder(path)
    try:
        return _loaded(folder, backbone, weights, trust)
    except Exception as error:  # what a folder describes can fail anywhere
        if str(folder) in str(error):
            raise
        worded = isinstance(error, ValueError | RuntimeError | OSError)
        reason = str(error) if worded else f"{type(error).__name__}: {error}"
        kind = RuntimeError if isinstance(error, RuntimeError | OSError) else ValueError
        raise kind(f"{folder} cannot be used: {reason}") from error


def _loaded(
    folder: Path, given: Backbone | None, weights: str | None, trust: Sequence[str]
) -> AdaptedModel:
    record = read_adapter_config(folder)
    origin = str(folder / ADAPTER_CONFIG)
    described = _without_sources(record["adapter"])
    adapter = build(Strategy, described, origin=origin, trust=trust)
    tensors = read_adapter_tensors(folder)
    head = {k.removeprefix("head."): v for k, v in tensors.items() if k.startswith("head.")}
    if not trust:
        _check_sizes(record, head, tensors, folder)
    full = isinstance(adapter, FullFineTune)
    source = weights or ("random" if full else None)
    backbone = _backbone(record, source, str(folder)) if given is None else given
    if given is not None:
        _require_same(given, record)
    if full:
        # It holds every weight itself: the weights that it started from are not needed.
        backbone.__dict__["sha256"] = record["backbone"]["sha256"]
    elif backbone.sha256 != record["backbone"]["sha256"]:
        raise ValueError(_other_weights(record, backbone, folder))
    task = _task(record, backbone, adapter, head, origin)
    adapter_files.recall_adapter(folder, adapter, alone=True)
    task.build()
    adapter_files.load_adapter(folder, task.adapter, task.backbone)
    assert task.head is not None
    mine = task.head.state_dict(keep_vars=True)
    check_keys(mine, head, f"The head in {folder / ADAPTER_WEIGHTS}")
    with torch.no_grad():
        for name, tensor in mine.items():
            tensor.copy_(head[name])
    classes = task.num_classes if isinstance(task, ClassificationTask | DetectionTask) else 0
    named = len(record.get("class_names") or ())
    if classes and named not in (0, classes):
        raise ValueError(f"{origin} has {named} class_names, and the head {classes} classes.")
    return AdaptedModel(task, record, folder)


def _require_same(backbone: Backbone, record: Mapping[str, Any]) -> None:
    """Refuse a run of a backbone that differs in more than its weights, which are checked anyway.

    Raises:
        ValueError: It does.
    """
    known = record["backbone"]
    mine = {key: backbone.facts.get(key) for key in ("name", "image_size", "mean", "std")}
    theirs = {key: known.get(key) for key in mine}
    mine, theirs = (
        {k: list(v) if isinstance(v, tuple) else v for k, v in facts.items()}
        for facts in (mine, theirs)
    )
    other = [key for key in mine if mine[key] != theirs[key]]
    if other:
        raise ValueError(
            f"its backbone has {other[0]} {theirs[other[0]]}, and the shared one "
            f"{mine[other[0]]}. Train it on the same backbone"
        )


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
    """The device of the option --device; `auto` is the GPU if there is one.

    Raises:
        ValueError: It cannot be used here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).tolist()  # meta, say, holds no numbers
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used here: {first_line(error)}") from error
    return device


def adapter_folder(path: str | Path) -> Path:
    """The adapter folder of a path: the path itself, that of a run, or one from the hub."""
    if is_on_hub(path):
        return downloaded(path)
    return local_adapter_folder(path)


def _without_sources(described: Mapping[str, Any]) -> dict[str, Any]:
    return {key: described[key] for key in ("class_path", "init_args")}


def _check_sizes(
    record: Mapping[str, Any],
    head: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    folder: Path,
) -> None:
    """Refuse a folder whose record and tensors differ in size, before memory is allocated."""
    origin = str(folder / ADAPTER_CONFIG)
    with without_numbers():
        twin = build(Strategy, _without_sources(record["adapter"]), origin=origin)
        backbone = _backbone(record, "random", str(folder))
        task = _task(record, backbone, twin, head, origin)
        adapter_files.recall_adapter(folder, twin, alone=True)
        task.build()
    assert task.head is not None
    sizes = {f"adapter.{name}": tensor for name, tensor in twin.tensors().items()}
    sizes |= {f"head.{k}": v for k, v in task.head.state_dict(keep_vars=True).items()}
    check_keys(sizes, tensors, str(folder / ADAPTER_WEIGHTS))


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
        if source == "given":  # Backbone.around
            raise FileNotFoundError(
                f"{folder} was saved by kora.attach, which cannot know where the weights of "
                f"'{known['name']}' came from. Give weights= (or --weights): 'pretrained' if they "
                f"were timm's, or else their file. SHA-256 of the weights: {known['sha256'][:12]}."
            ) from error
        raise FileNotFoundError(
            f"{folder} belongs to weights of '{known['name']}' in {source}, and there is no such "
            f"file here: give its path (weights=, or --weights). SHA-256 of the weights: "
            f"{known['sha256'][:12]}."
        ) from error
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(f"{folder}: its backbone cannot be built: {error}") from error


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
    if described is None and set(head) == {"linear.weight", "linear.bias"}:  # by earlier versions
        described = {
            "class_path": "kora.tasks.ClassificationTask",
            "init_args": {"num_classes": head["linear.bias"].numel()},
        }
    if described is None:
        raise ValueError(
            f"{origin} does not record its task and head: it was written by kora "
            f"{record.get('kora_version')}, or by a task of your own. Use its checkpoint with the "
            "config.yaml of its run."
        )
    if not (isinstance(described, Mapping) and isinstance(described.get("init_args"), Mapping)):
        raise ValueError(f"{origin}: task is {described!r:.80}, expected class_path and init_args.")
    kinds = {
        f"kora.tasks.{kind.__name__}": kind
        for kind in (ClassificationTask, DepthTask, DetectionTask, SegmentationTask)
    }
    kind = kinds.get(str(described.get("class_path")))
    if kind is None:
        named = described.get("class_path")
        raise ValueError(f"{origin} names {named!r:.80}, which is no task of kora.")
    arguments = build_arguments(
        kind, described["init_args"], origin=origin, skip={"backbone", "adapter"}
    )
    return kind(backbone, adapter, **arguments)
