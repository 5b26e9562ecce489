"""Export as an ONNX graph, checked with onnxruntime; needs the extra `onnx`.

The graph takes uint8 images (B, 3, H, W) at the size of the backbone, any B, and normalises them
itself. Resizing is left to whoever calls it, as export.json says. Where the adapter can be folded
into the weights the graph is timm's plain model; otherwise (KoRA) it holds the adapter.
"""

from __future__ import annotations

import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kora.backbones import Backbone
from kora.export_check import Written, compared, probe_images
from kora.export_timm import merged_model, merged_state
from kora.load import AdaptedModel
from kora.tasks import ClassificationTask

__all__ = ["GRAPH", "write"]

GRAPH = "model.onnx"
_NEEDS = ("onnx", "onnxruntime", "onnxscript")


def write(model: AdaptedModel, folder: Path) -> Written:
    """Write `model.onnx`, and compare what onnxruntime makes of it.

    Raises:
        RuntimeError: If the extra is not installed, or torch cannot write this model as a graph.
    """
    missing = [name for name in _NEEDS if find_spec(name) is None]
    if missing:
        raise RuntimeError(
            f"--format onnx needs {', '.join(missing)}: pip install 'kora-vit[onnx]'"
        )
    module, merged = _module(model)
    output = "logits" if isinstance(model.task, ClassificationTask) else "depth_m"
    images = probe_images(model.backbone)
    path = folder / GRAPH
    _trace(module.eval(), images[:2], path, output)
    with torch.inference_mode():
        difference, largest = compared(model(images), _run(path, images))
    return Written(
        load=(
            "import onnxruntime",
            f"session = onnxruntime.InferenceSession('FOLDER/{GRAPH}')",
            f"outputs = session.run(['{output}'], {{'images': images}})  # uint8 (B, 3, "
            f"{', '.join(map(str, model.backbone.size))})",
        ),
        details={"graph": GRAPH, "input": "images", "output": output, "merged": merged},
        difference=difference,
        largest=largest,
    )


class _Plain(nn.Module):
    """Merged weights behind the backbone's own normalisation."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, model: Any) -> None:
        super().__init__()
        self.register_buffer("mean", backbone.mean)
        self.register_buffer("std", backbone.std)
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images to logits (B, K)."""
        logits: Tensor = self.model((images.float() / 255 - self.mean) / self.std)
        return logits


def _module(model: AdaptedModel) -> tuple[nn.Module, bool]:
    if isinstance(model.task, ClassificationTask):
        try:
            state = merged_state(model)
        except ValueError:  # its weights cannot take the adapter: the graph holds it
            return model, False
        return _Plain(model.backbone, merged_model(model, state)), True
    return model, False


def _trace(module: nn.Module, images: Tensor, path: Path, output: str) -> None:
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
                output_names=[output],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
            assert graph is not None
            graph.save(str(path), external_data=False)
    except Exception as error:  # torch raises errors of many kinds here
        raise RuntimeError(f"torch cannot write this model as ONNX: {_first(error)}") from error
    finally:
        loud.setLevel(level)


def _run(path: Path, images: Tensor) -> Tensor:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        (found,) = session.run(None, {"images": images.numpy()})
    except Exception as error:  # its errors are classes of a compiled module
        raise RuntimeError(f"onnxruntime cannot run the graph: {_first(error)}") from error
    return torch.from_numpy(found)


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
