"""What an adapter folder records besides its strategy: task, head, preprocessing, weights' source.

`kora/adapters/folder.py` writes strategy and backbone; with the entries made here,
`kora/tasks/load.py` rebuilds the whole model without the config of the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datamodules.recipe import ImageRecipe
from kora.adapters import describe
from kora.backbone.vit import Backbone
from kora.tasks import (
    AdapterTask,
    ClassificationTask,
    DepthTask,
    DetectionTask,
    SegmentationTask,
)

__all__ = ["preprocessing", "recipe_of", "task_record"]


def task_record(task: AdapterTask, datamodule: Any = None) -> dict[str, Any]:
    """Task with its head, preprocessing, and where the frozen weights came from; plain types."""
    return {
        "task": _described(task),
        "preprocessing": preprocessing(
            task.backbone, getattr(datamodule, "recipe", None) or ImageRecipe()
        ),
        "weights": {
            "source": task.backbone.weights,
            "keep_classifier": task.backbone.keep_classifier,
            "licence": _licence(task.backbone),
            "hub": _hub(task.backbone),
        },
    }


def _described(task: AdapterTask) -> dict[str, Any] | None:
    """Class path and the arguments that shape predictions; None for a task of another kind."""
    if type(task) is ClassificationTask:
        arguments: dict[str, Any] = {"num_classes": task.num_classes}
        if task.head_layers is not None:
            arguments["head_layers"] = describe(task.head_layers)
    elif type(task) is DepthTask:
        arguments = {"head": describe(task.head), "protocol": task.protocol.to_dict()}
    elif type(task) is SegmentationTask or type(task) is DetectionTask:
        arguments = {
            "num_classes": task.num_classes,
            "head": describe(task.head),
            "protocol": task.protocol.to_dict(),
        }
    else:
        return None
    return {"class_path": f"kora.tasks.{type(task).__name__}", "init_args": arguments}


def preprocessing(backbone: Backbone, recipe: ImageRecipe) -> dict[str, Any]:
    """What happens to a picture before the model of timm: steps in their order, in plain types."""
    steps: list[dict[str, Any]] = [
        {"step": "open", "library": "Pillow", "frame": "first", "bits": 8},
        {"step": "orient", "by": "EXIF"},
        {"step": "convert", "mode": "RGB", "transparency": recipe.transparency},
    ]
    if recipe.size is not None:
        steps.append(
            {
                "step": "resize", "fit": recipe.fit, "size": list(recipe.size),
                "library": "Pillow", "filter": "bicubic", "of": "uint8",
            }
        )  # fmt: skip
    steps.append({"step": "scale", "factor": 1 / 255})
    if recipe.size != backbone.size:
        steps.append(
            {
                "step": "resize", "fit": "stretch", "size": list(backbone.size),
                "library": "torch", "filter": backbone.interpolation, "of": "float32",
                "antialias": True, "clip": [0, 1],
            }
        )  # fmt: skip
    values = {**backbone.model.pretrained_cfg, **backbone.normalisation}
    mean, std = list(values["mean"]), list(values["std"])
    return {"steps": [*steps, {"step": "normalise", "mean": mean, "std": std}]}


def recipe_of(record: Mapping[str, Any]) -> ImageRecipe:
    """The recipe by which a run read its images, from the JSON of its adapter folder.

    Older folders have no steps, but `loader` or nothing; transparency was dropped then.
    """
    stated = record.get("preprocessing") or {}
    if "steps" not in stated:
        loader = stated.get("loader") or {"resize": None, "image_size": None}
        return ImageRecipe(loader["resize"], _pair(loader["image_size"]), "dropped")
    found: dict[str, Any] = {}
    for step in stated["steps"]:
        if step["step"] == "convert":
            found["transparency"] = step["transparency"]
        elif step["step"] == "resize" and step["library"] == "Pillow":
            found |= {"fit": step["fit"], "size": _pair(step["size"])}
    return ImageRecipe(**found)


def _pair(size: Any) -> tuple[int, int] | None:
    return None if size is None else (int(size[0]), int(size[1]))


def _licence(backbone: Backbone) -> str | None:
    """The licence that timm names for its weights; None for a file of the user's."""
    if backbone.weights != "pretrained":
        return None
    named = backbone.model.pretrained_cfg.get("license")
    return None if named is None else str(named)


def _hub(backbone: Backbone) -> str | None:
    """The id on the hub from which timm loads its weights; None for a file of the user's."""
    named = backbone.model.pretrained_cfg.get("hf_hub_id")
    return str(named) if named and backbone.weights == "pretrained" else None
