"""What an adapter folder says beyond its strategy: task, head, preprocessing, source of weights.

`kora/checkpoints.py` writes strategy and backbone; with what stands here, `kora/load.py` builds the
whole model again without the config of the run.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, get_args

from torch import nn

from datamodules.loading import Resize
from kora.adapters import describe
from kora.backbones import Backbone
from kora.tasks import AdapterTask, ClassificationTask, DepthTask

__all__ = ["preprocessing", "rebuild", "task_record"]


def task_record(task: AdapterTask, datamodule: Any = None) -> dict[str, Any]:
    """Task with its head, preprocessing, and where the frozen weights came from; plain types."""
    return {
        "task": _described(task),
        "preprocessing": preprocessing(task.backbone, datamodule),
        "weights": {
            "source": task.backbone.weights,
            "keep_classifier": task.backbone.keep_classifier,
            "licence": _licence(task.backbone),
        },
    }


def rebuild(described: Any, *, origin: str) -> Any:
    """The object that `describe` gave a class path and arguments for; other values as they are.

    Nothing is imported for it, so a file cannot name code that this process has not chosen to load.

    Raises:
        ValueError: If the class is not known here, or does not take these arguments.
    """
    if not isinstance(described, Mapping) or "class_path" not in described:
        return described
    path = str(described["class_path"])
    module, _, name = path.rpartition(".")
    kind = getattr(sys.modules.get(module), name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(
            f"{origin} names {path}, which is not known here. Import the module that defines it "
            "before you load the folder."
        )
    arguments = {
        key: rebuild(value, origin=origin) for key, value in described["init_args"].items()
    }
    try:
        return kind(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{origin} has arguments of {path} that this version of kora does not take: {error}"
        ) from error


def _described(task: AdapterTask) -> dict[str, Any] | None:
    """Class path and the arguments that shape predictions; None for a task of another kind."""
    if type(task) is ClassificationTask:
        arguments: dict[str, Any] = {"num_classes": task.num_classes}
        if task.head_layers is not None:
            arguments["head_layers"] = describe(task.head_layers)
    elif type(task) is DepthTask:
        arguments = {"head": describe(task.head), "protocol": task.protocol.to_dict()}
    else:
        return None
    return {"class_path": f"kora.tasks.{type(task).__name__}", "init_args": arguments}


def preprocessing(backbone: Backbone, datamodule: Any = None) -> dict[str, Any]:
    """What happens to an image before the model of timm; `loader` is what the data module did."""
    resize = getattr(datamodule, "resize", None)
    loader = None
    if resize in get_args(Resize):
        loader = {"image_size": list(datamodule.image_size), "resize": resize}
    values = {**backbone.model.pretrained_cfg, **backbone.normalisation}
    return {
        "loader": loader,
        "size": list(backbone.size),
        "resize": "stretch",
        "interpolation": backbone.interpolation,
        "antialias": True,
        "scale": 1 / 255,
        "mean": list(values["mean"]),
        "std": list(values["std"]),
    }


def _licence(backbone: Backbone) -> str | None:
    """What timm says of the weights; nothing is known of a file of the user's."""
    if backbone.weights != "pretrained":
        return None
    named = backbone.model.pretrained_cfg.get("license")
    return None if named is None else str(named)
