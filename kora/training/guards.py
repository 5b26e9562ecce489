"""A loss or gradient that is not finite stops the run before the optimiser makes a step with it."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["FiniteGuard"]

_MOST = 64  # samples that an error names


class FiniteGuard(Callback):
    """Stops at a loss or gradient that is not finite, and names the batch.

    Weights and optimiser stay as after the last good step. All processes stop at the same step.
    """

    def __init__(self) -> None:
        self._batch: tuple[int, Any] = (0, None)
        self._bad: str | None = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch, to name its samples."""
        self._batch = (batch_idx, batch)

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Check the loss."""
        value = float(loss.detach()) * trainer.accumulate_grad_batches  # Lightning divided by it
        if not math.isfinite(value) and self._bad is None:
            self._bad = self._description(trainer, f"the loss is {value}")

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Check the gradients; stop if they or the loss are not finite.

        Raises:
            RuntimeError: Loss or gradients are not finite.
        """
        # A loss scaler skips steps whose gradients overflow, by design.
        scales = getattr(trainer.precision_plugin, "scaler", None) is not None
        if self._bad is None and not scales and not _finite_gradients(optimizer):
            self._bad = self._description(trainer, "a gradient is not finite")
        good = trainer.strategy.reduce_boolean_decision(self._bad is None, all=True)
        self._batch = (0, None)
        if not good:
            why = self._bad or "the loss or a gradient on another process is not finite"
            raise RuntimeError(
                f"Training stopped: {why}. The optimiser has not made this step. Look at these "
                "samples; or resume with a lower model.optimizer.lr, with "
                "trainer.gradient_clip_val, or with trainer.precision: 32-true."
            )

    def _description(self, trainer: Trainer, what: str) -> str:
        number, batch = self._batch
        index = batch.get("index") if isinstance(batch, dict) else None
        samples = "unknown"
        if index is not None:
            listed = index.tolist()
            more = f" and {len(listed) - _MOST} more" if len(listed) > _MOST else ""
            samples = ", ".join(map(str, listed[:_MOST])) + more
        return f"{what} in epoch {trainer.current_epoch}, batch {number} (samples {samples})"


def _finite_gradients(optimizer: Optimizer) -> bool:
    """Check all gradients in one pass, as torch's loss scaler does; the scale is one here."""
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                gradient = parameter.grad.detach()
                alike.setdefault((gradient.device, gradient.dtype), []).append(gradient)
    return all(_finite(gradients, device) for (device, _), gradients in alike.items())


def _finite(gradients: list[Tensor], device: torch.device) -> bool:
    if device.type not in ("cpu", "cuda"):  # others may lack the operation below
        return bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients)))
    wrong, one = torch.zeros((), device=device), torch.ones((), device=device)
    torch._amp_foreach_non_finite_check_and_unscale_(gradients, wrong, one)
    return not wrong
