"""The gradient that reaches each node of KoRA, read while a run trains.

Shapes: B images, N tokens, C d_comp, L nodes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from kora.adapters import KoRA
from kora.analysis.redundancy import redundancy
from kora.runs.durable import write_text
from kora.tasks import AdapterTask

__all__ = ["COMPOSED", "GRADIENTS_NAME", "GradientNorms", "NodeGradients", "read_gradients"]

GRADIENTS_NAME = "node_gradients.json"
#: Key of the gradient at the end of the composition, c_L, next to those of the nodes.
COMPOSED = "composed"
#: Optimiser steps that are read, besides the last. A readout that starts at zero has moved by the
#: second, so that is the first step at which a gradient can reach a node.
STEPS = (1, 2, 100)

_SCHEMA = 1
_WHAT = (
    "Norm of the gradient of an image's own loss with respect to p_i of that image (of all its "
    "tokens together), the mean over the images of the step; `composed` is the same for c_L. On "
    "the first process, before any clipping. `redundancy` is the mean over images and pairs of "
    "nodes of |cos(p_i, p_j)|."
)


class GradientNorms:
    """The mean over images of the norm of the gradient at p_1 ... p_L and at c_L.

    Give `observe` to a KoRA as its observer, run forward and backward (several times to gather
    more images), and ask `means`.

    Args:
        keys: Keys of the nodes, in forward order.
        factor: Undoes the scale of the loss in the backward pass (its mean over images aside):
            accumulated batches / factor of a loss scaler.
    """

    def __init__(self, keys: Sequence[str], *, factor: float = 1.0) -> None:
        self.keys = (*keys, COMPOSED)
        self.factor = factor
        self.images = 0
        self._redundancy = 0.0
        self._sums = dict.fromkeys(self.keys, 0.0)

    def observe(self, vectors: Sequence[Tensor], composed: Tensor) -> None:
        """Hook the vectors of a forward pass; do nothing if it has no gradients."""
        if not composed.requires_grad:
            return
        self.images += len(composed)
        self._redundancy += len(composed) * redundancy(vectors)
        scale = self.factor * len(composed)  # the loss of a batch is the mean over its images
        for key, tensor in zip(self.keys, (*vectors, composed), strict=True):
            hook = partial(self._add, key, scale)
            tensor.register_hook(hook)  # type: ignore[no-untyped-call]

    @property
    def redundancy(self) -> float:
        """The mean over images and pairs of nodes of |cos(p_i, p_j)|."""
        return self._redundancy / max(self.images, 1)

    def means(self) -> dict[str, float]:
        """Norms by node and `composed`; 0 for a node that no gradient has reached."""
        return {key: total / max(self.images, 1) for key, total in self._sums.items()}

    def _add(self, key: str, scale: float, gradient: Tensor) -> None:
        # In float64, as the squares of what reaches early nodes are below the smallest float32.
        norm_B = gradient.detach().cpu().double().flatten(1).norm(dim=1)
        self._sums[key] += scale * float(norm_B.sum())


class NodeGradients(Callback):
    """Reads the gradient at each node at a few optimiser steps, and writes node_gradients.json.

    It reads the first, the second, the 100th and the last step. At all other steps the adapter has
    no observer. Training may stop early, so the last step of every epoch is read and the newest is
    kept. Checkpoints hold the readings, so a resumed run has all of them, in any folder. A compiled
    task (`model.compile`) is not read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.readings: list[dict[str, Any]] = []
        self._last_step = math.inf
        self._step: int | None = None
        self._norms: GradientNorms | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the planned number of steps."""
        self._last_step = trainer.estimated_stepping_batches

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Observe the batches of a step that is read."""
        adapter = _adapter(pl_module)
        if adapter is None or not trainer.is_global_zero:
            return
        step = trainer.global_step + 1
        accumulated = trainer.accumulate_grad_batches
        if step != self._step and self._is_read(trainer, step, batch_idx):
            self._step = step
            factor = accumulated / _loss_scale(trainer)
            self._norms = GradientNorms(list(adapter.nodes), factor=factor)
            adapter.observer = self._norms.observe

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Keep the reading once its step is done."""
        if self._norms is None or trainer.global_step != self._step:
            return
        means = self._norms.means()
        reading = {
            "step": self._step,
            "images": self._norms.images,
            COMPOSED: _finite(means.pop(COMPOSED)),
            "redundancy": self._norms.redundancy,
            "nodes": {key: _finite(norm) for key, norm in means.items()},
        }
        kept = [one for one in self.readings if one["step"] in STEPS and one["step"] < self._step]
        self.readings = [*kept, reading]
        # Not by `log`, which would wait for log_every_n_steps and then repeat it for an epoch.
        row = {"train/redundancy": self._norms.redundancy, "epoch": trainer.current_epoch}
        for logger in trainer.loggers:
            logger.log_metrics(row, step=self._step - 1)  # as Lightning counts them
        self._stop(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the readings."""
        self._stop(pl_module)
        if self.readings and trainer.is_global_zero:
            record = {"schema": _SCHEMA, "what": _WHAT, "readings": self.readings}
            text = json.dumps(record, indent=1, allow_nan=False) + "\n"
            write_text(self.folder / GRADIENTS_NAME, text)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Remove the observer."""
        self._stop(pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"readings": self.readings}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.readings = state_dict["readings"]

    def _is_read(self, trainer: Trainer, step: int, batch_idx: int) -> bool:
        accumulated = trainer.accumulate_grad_batches
        after = (batch_idx // accumulated + 1) * accumulated  # batches, at the end of this step
        return step in STEPS or step == self._last_step or after >= trainer.num_training_batches

    def _stop(self, module: LightningModule) -> None:
        self._step = self._norms = None
        adapter = _adapter(module)
        if adapter is not None:
            adapter.observer = None


def read_gradients(folder: Path) -> list[dict[str, Any]] | None:
    """The readings of a run in the order of their steps; None if it has no such file.

    Each has `step`, `images`, `composed`, `redundancy` (not in early files) and `nodes` (norms by
    key; None for one that was not finite, which a loss scaler allows).

    Raises:
        RuntimeError: The file is damaged.
        ValueError: It is of another schema.
    """
    path = folder / GRADIENTS_NAME
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        schema, readings = record["schema"], list(record["readings"])
        if schema == _SCHEMA:
            for reading in readings:
                _ = (int(reading["step"]), int(reading["images"]), dict(reading["nodes"]))
    except (ValueError, TypeError, KeyError) as error:
        raise RuntimeError(
            f"{path} is damaged ({type(error).__name__}: {error}). Remove it: the gradient is then "
            "measured with the final weights."
        ) from error
    if schema != _SCHEMA:
        raise ValueError(
            f"{path} is of schema {schema!r}, and this KoRA reads {_SCHEMA}. Read it with the KoRA "
            "that wrote it."
        )
    return readings


def _adapter(module: LightningModule) -> KoRA | None:
    """The KoRA adapter, if it trains and can be observed."""
    if not (isinstance(module, AdapterTask) and module.adapter_trainable):
        return None
    if module.compile_module:  # each observer would compile the model again
        return None
    return module.adapter if isinstance(module.adapter, KoRA) else None


def _loss_scale(trainer: Trainer) -> float:
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())


def _finite(norm: float) -> float | None:
    return norm if math.isfinite(norm) else None
