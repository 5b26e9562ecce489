"""Export as an ONNX graph, checked with onnxruntime; needs the extra `onnx`.

The graph takes uint8 images (B, 3, H, W) of any size and any number, in RGB and upright, as
`prepare.py` gives them; it fits, resizes and normalises them itself, as the run does. If the
adapter can be folded into the weights, timm's plain model follows; otherwise (KoRA) the graph
contains the adapter. Detectors give boxes in pixels of the images, after suppression.

Shapes: B images, K classes, n boxes of an image, H and W pixels of an image, h and w those at which
the backbone runs.
"""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.recipe import ImageRecipe
from kora.console.errors import first_line
from kora.export import graph_boxes
from kora.export.check import (
    Written,
    compared,
    compared_boxes,
    compared_pictures,
    probe_pictures,
    worst,
)
from kora.export.graph_resize import fit_pixels, resize_pixels
from kora.export.prepare import USE, write_prepare
from kora.export.timm_weights import merged_model, merged_state
from kora.tasks import ClassificationTask, DepthTask, DetectionTask, SegmentationTask
from kora.tasks.load import AdaptedModel
from kora.tasks.multi import MultiTask

__all__ = ["GRAPH", "write", "write_several"]

GRAPH = "model.onnx"
_NEEDS = ("onnx", "onnxruntime", "onnxscript")
_DIM = torch.export.Dim
_TWO = torch.arange(6, dtype=torch.uint8).view(2, 3, 1, 1)  # two images for tracing


def write(model: AdaptedModel, folder: Path) -> Written:
    """Write `model.onnx`, and compare its outputs in onnxruntime.

    Raises:
        RuntimeError: If the extra is not installed, or torch cannot write this model as a graph.
    """
    _require_extra()
    if isinstance(model.task, SegmentationTask) and model.task.protocol.window != "whole":
        raise ValueError(
            f"--format onnx: a graph holds one pass over the whole image, and {model.folder} was "
            "evaluated with a sliding window. Use kora predict, or train with protocol: whole."
        )
    _require_fitted(model)
    graph, merged = _graph(model)
    outputs = _output_names(model)
    run = _written(graph, model.backbone.size, folder, outputs, _labels_of([model]))
    write_prepare(model, folder, pixels=True)
    found = []
    with torch.inference_mode():
        for picture in probe_pictures(model.backbone):
            images = torch.stack([picture, picture.flip(-1), picture.flip(-2)])
            found.append(_compared(model, model(images), run(images.numpy())))
        found.append(compared_pictures(model, folder, run, partial(_compared, model)))
    difference, largest = worst(found)
    named = {"output": outputs[0]} if len(outputs) == 1 else {"outputs": outputs}
    given = "(outputs,)" if len(outputs) == 1 else ", ".join(outputs)
    hint = _HINT if isinstance(model.task, DetectionTask) else ""
    return Written(
        load=_LOAD,
        use=(*_USE, f"{given} = session.run({outputs}, {{'images': images}}){hint}"),
        details={**_INPUT, **named, "merged": merged},
        difference=difference,
        largest=largest,
    )


def write_several(model: MultiTask, folder: Path) -> Written:
    """Write one `model.onnx` with an output for each task, and compare them in onnxruntime.

    Raises:
        RuntimeError: As `write`.
    """
    _require_extra()
    models = list(model.models_by_name.values())
    _require_fitted(models[0])
    outputs = {
        name: [f"{name}_{part}" for part in _BOXES]
        if isinstance(one.task, DetectionTask)
        else [name]
        for name, one in model.models_by_name.items()
    }
    flat = [output for some in outputs.values() for output in some]
    run = _written(_SharedGraph(model), model.backbone.size, folder, flat, _labels_of(models))
    dense = [one for one in models if not isinstance(one.task, ClassificationTask)]
    write_prepare((dense or models)[0], folder, pixels=True)
    found = []
    with torch.inference_mode():
        for picture in probe_pictures(model.backbone):
            images = torch.stack([picture, picture.flip(-1)])
            ours, theirs = model(images), iter(run(images.numpy()))
            found += [
                _compared(one, ours[name], [next(theirs) for _ in outputs[name]])
                for name, one in model.models_by_name.items()
            ]
    difference, largest = worst(found)
    return Written(
        load=_LOAD,
        use=(*_USE, f"{', '.join(_identifiers(flat))} = session.run(None, {{'images': images}})"),
        details={**_INPUT, "outputs": flat},
        difference=difference,
        largest=largest,
    )


def _output_names(model: AdaptedModel) -> list[str]:
    if isinstance(model.task, DetectionTask):
        return list(_BOXES)
    return ["depth_m" if isinstance(model.task, DepthTask) else "logits"]


def _labels_of(models: Sequence[AdaptedModel]) -> int:
    """A number above all labels of boxes, and of levels, which Faster R-CNN separates likewise."""
    found = [one.task.num_classes or 0 for one in models if isinstance(one.task, DetectionTask)]
    return max([_MOST_LEVELS, *found])


def _compared(model: AdaptedModel, ours: Any, theirs: Sequence[Tensor]) -> tuple[float, float]:
    """The largest difference of what a model and its graph give, and the largest output."""
    if isinstance(model.task, DetectionTask):
        return compared_boxes(ours, theirs, least=model.task.protocol.score_threshold)
    return compared(ours, theirs[0])


def _require_fitted(model: AdaptedModel) -> None:
    """Refuse a recipe whose sizes a graph does not compute.

    Raises:
        ValueError: For `cover`.
    """
    if model.recipe.fit == "cover":
        raise ValueError(
            f"--format onnx: {model.folder} reads images with data.resize: cover, which a graph "
            "does not hold. Use kora predict, or train with data.resize: stretch."
        )


def _require_extra() -> None:
    missing = [name for name in _NEEDS if find_spec(name) is None]
    if missing:
        raise RuntimeError(
            f"--format onnx needs {', '.join(missing)}: pip install 'kora-vit[onnx]'"
        )


def _identifiers(names: Sequence[str]) -> list[str]:
    """Names of tasks as names of Python's variables."""
    return ["".join(c if c.isalnum() else "_" for c in f"of_{name}") for name in names]


_BOXES = ("boxes", "scores", "labels")
_HINT = "  # x1, y1, x2, y2; the label is -1 where there is no box"
_MOST_LEVELS = 4
_LOAD = ("import onnxruntime", f"session = onnxruntime.InferenceSession('FOLDER/{GRAPH}')")
_USE = (*USE, "images = prepare('photo.jpg')  # uint8 (1, 3, H, W)")
_INPUT = {
    "graph": GRAPH,
    "input": "images",
    "input_takes": "uint8 (B, 3, H, W), RGB, upright, any size",
}


class _Graph(nn.Module):
    """The whole way from pixels to the output, with sizes as variables of the graph.

    `plain` is timm's model with merged weights; without it, the graph holds the task of the run.
    """

    def __init__(self, model: AdaptedModel, plain: nn.Module | None) -> None:
        super().__init__()
        self.recipe = model.recipe
        self.size = model.backbone.size
        self.interpolation = model.backbone.interpolation
        self.plain = plain
        self.task = model.task if plain is None else None
        self.register_buffer("mean", model.backbone.mean)
        self.register_buffer("std", model.backbone.std)

    mean: Tensor
    std: Tensor

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """(B, 3, H, W) uint8 to logits (B, K) or (B, K, H, W), to depth in metres, or to boxes.

        Boxes are (B, n, 4) with scores (B, n) and labels (B, n).
        """
        x = _fitted(images, self.recipe, self.size, self.interpolation)
        output: Tensor
        if self.plain is not None:
            output = self.plain((x - self.mean) / self.std)
        elif isinstance(self.task, DepthTask):
            size = self.recipe.shown((images.shape[-2], images.shape[-1]))
            output = self.task.at_size(self.task.flipped_mean(x), size)
        elif isinstance(self.task, SegmentationTask):
            size = self.recipe.shown((images.shape[-2], images.shape[-1]))
            output = self.task.whole_scores(x, size)
        elif isinstance(self.task, DetectionTask):
            levels: Any = self.task(x)
            head: Any = self.task.head
            return graph_boxes.own_boxes(head, levels, images, self.recipe)
        else:
            assert self.task is not None
            output = self.task(x)
        return output


class _SharedGraph(nn.Module):
    """The whole way from pixels to the outputs of several tasks, through one backbone."""

    def __init__(self, model: MultiTask) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) uint8 to what each task gives, in the order of the tasks."""
        backbone, recipe = self.model.backbone, self.model.recipe
        x = _fitted(images, recipe, backbone.size, backbone.interpolation)
        size = recipe.shown((images.shape[-2], images.shape[-1]))
        outputs = self.model.outputs(x)
        found: list[Tensor] = []
        for name, one in self.model.models_by_name.items():
            head: Any = one.head
            if isinstance(one.task, DetectionTask):
                found += graph_boxes.own_boxes(head, outputs[name], images, recipe)
            else:
                found.append(one.answer(outputs[name], size))
        return tuple(found)


def _fitted(
    images: Tensor, recipe: ImageRecipe, size: tuple[int, int], interpolation: str
) -> Tensor:
    """Pixels in [0, 1], (B, 3, h, w), as the run prepares them."""
    pixels = fit_pixels(images, recipe)
    return (
        pixels.float() / 255 if recipe.size == size else resize_pixels(pixels, size, interpolation)
    )


def _written(
    graph: nn.Module, size: tuple[int, int], folder: Path, outputs: Sequence[str], num_labels: int
) -> Callable[[Any], list[Tensor]]:
    """Write a graph, and return a function that runs it on arrays (B, 3, H, W)."""
    path = folder / GRAPH
    pictures = _TWO.expand(2, 3, size[0] + 3, size[1] + 5).contiguous()
    _trace(graph.eval(), pictures, path, outputs, num_labels)
    return _session(path)


def _graph(model: AdaptedModel) -> tuple[_Graph, bool]:
    if isinstance(model.task, ClassificationTask):
        try:
            state = merged_state(model)
        except ValueError:  # the adapter cannot be folded in: the graph contains it
            return _Graph(model, None), False
        return _Graph(model, merged_model(model, state)), True
    return _Graph(model, None), False


def _trace(
    module: nn.Module, images: Tensor, path: Path, outputs: Sequence[str], num_labels: int
) -> None:
    loud = logging.getLogger("torch.onnx")
    level = loud.level
    loud.setLevel(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = torch.onnx.export(
                module,
                (images,),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=list(outputs),
                dynamic_shapes=({0: _DIM("batch"), 2: _DIM("height"), 3: _DIM("width")},),
                custom_translation_table=graph_boxes.translations(num_labels),
            )
            assert graph is not None
            graph.save(str(path), external_data=False)
    except Exception as error:  # torch raises errors of many kinds here
        raise RuntimeError(f"torch cannot write this model as ONNX: {first_line(error)}") from error
    finally:
        loud.setLevel(level)
        # Where modules are shared, torch traces through subclasses with the names of our classes,
        # and a config would not know which is meant while they wait for garbage collection.
        gc.collect()


def _session(path: Path) -> Callable[[Any], list[Tensor]]:
    """A function that runs this graph in onnxruntime on arrays (B, 3, H, W)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its errors are classes of a compiled module
        raise RuntimeError(f"onnxruntime cannot load the graph: {first_line(error)}") from error

    def run(images: Any) -> list[Tensor]:
        try:
            found = session.run(None, {"images": images})
        except Exception as error:
            raise RuntimeError(f"onnxruntime cannot run the graph: {first_line(error)}") from error
        return [torch.from_numpy(one) for one in found]

    return run
