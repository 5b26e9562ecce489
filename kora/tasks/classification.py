"""Image classification. Shapes: B images, K classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

from kora.adapters import Strategy
from kora.backbone.frozen_inputs import Inputs
from kora.backbone.last_block import LastBlock
from kora.backbone.layer_summaries import LayerSummaries
from kora.backbone.vit import Backbone
from kora.feature_cache.rules import head_reads
from kora.heads import HeadInit, LinearHead
from kora.tasks.base import AdapterTask
from kora.tasks.train_accuracy import TrainAccuracy

__all__ = ["ClassificationTask"]

Batch = dict[str, Tensor]
_MAY_BE_LEFT_OUT = ("weighted_f1", "macro_f1", "top5_accuracy")


class ClassificationTask(AdapterTask):
    """Cross-entropy on the head's logits; accuracy, top-5, weighted and macro F1, loss.

    `train/accuracy` is measured on the training batches, each before its step, with augmentation
    and dropout. It is logged with each validation, or without one at the end of the epoch.

    Batches are dicts with `image` (B, 3, H, W) and `label` (B,); `index` (B,) names the images in
    predictions. Options besides these are those of `AdapterTask`.

    Args:
        backbone: The frozen vision transformer.
        adapter: The strategy; None is a linear probe.
        num_classes: K; None takes it from the data module.
        label_smoothing: In [0, 1), for the training loss only.
        head_init: Initial weights of the head: `default` (random, as nn.Linear), or `zero`, which
            is better for few or small steps. With the seed, the classes and the order of draws of a
            head that the backbone was trained with, a random head is that head's start, and may
            know the classes: use `zero` on a backbone that was pretrained with KoRA.
        head_dropout: Dropout probability on the input of the head.
        head_layers: Earlier layers that the head reads besides the pooled vector, with any
            strategy; None: none, or those that the strategy names (MultiLayerProbe).
        leave_out: Metrics that are not measured, of `weighted_f1`, `macro_f1` and `top5_accuracy`:
            those that a split cannot support, such as F1 on a single class.

    Raises:
        ValueError: If layers are named both here and by the strategy, if the number of classes is
            given neither here nor by the data module, or if a label is out of range.
    """

    monitor = ("val/accuracy", "max")

    def __init__(
        self,
        backbone: Backbone,
        adapter: Strategy | None = None,
        *,
        num_classes: int | None = None,
        label_smoothing: float = 0.0,
        head_init: HeadInit = "default",
        head_dropout: float = 0.0,
        head_layers: LayerSummaries | None = None,
        leave_out: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, adapter, **kwargs)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing}, expected a share in [0, 1).")
        unknown = [name for name in leave_out if name not in _MAY_BE_LEFT_OUT]
        if unknown:
            raise ValueError(
                f"leave_out has {unknown[0]!r}; what may be left out is "
                f"{', '.join(_MAY_BE_LEFT_OUT)}."
            )
        if head_init not in get_args(HeadInit):
            expected = " or ".join(get_args(HeadInit))
            raise ValueError(f"head_init='{head_init}', expected {expected}.")
        self.num_classes = num_classes
        self.head_init: HeadInit = head_init
        self.head_dropout = head_dropout
        if head_layers is not None and self.adapter.head_layers is not None:
            raise ValueError(
                f"model.head_layers is given, and {self.adapter.label} names what the head reads "
                "itself. Leave one of them out."
            )
        self.head_layers = head_layers
        self.leave_out = tuple(leave_out)
        self.label_smoothing = label_smoothing
        self.val_metrics: MetricCollection
        self.test_metrics: MetricCollection
        self.val_loss = MeanMetric()
        self.test_loss = MeanMetric()
        self.test_confusion: Metric
        self.train_accuracy = TrainAccuracy()
        #: Set if the last block computes only what the head reads.
        self.last_block: LastBlock | None = None

    @property
    def label(self) -> str:
        """The label of the strategy, with `-layers` if `head_layers` is given."""
        return f"{self.adapter.label}{'-layers' * (self.head_layers is not None)}"

    @property
    def read_layers(self) -> LayerSummaries | None:
        """The earlier layers that the head reads, by the task's own option or the strategy's."""
        return self.adapter.head_layers if self.head_layers is None else self.head_layers

    def build(self) -> None:
        """Build; the last block then skips what neither head nor adapter reads."""
        self.adapter.num_outputs = self._known_classes()
        super().build()
        layers = self.read_layers
        on_cls = {"pooled", "layers"}.issuperset(head_reads(self)) and not (
            self.adapter.needs_last_tokens or (layers is not None and layers.needs_last_tokens)
        )
        if on_cls and LastBlock.fits(self.backbone):
            self.last_block = LastBlock(self.backbone)

    def forward(self, images: Tensor | Inputs) -> Tensor:
        """Logits (B, K) of images (B, 3, H, W), or of their cached features."""
        if self.last_block is None or self.backbone.model.grad_checkpointing:
            return super().forward(images)
        self.last_block.active = True  # torch.compile cannot enter a `with` of ours
        try:
            return super().forward(images)
        finally:
            self.last_block.active = False

    def build_head(self) -> nn.Module:
        """A linear layer, and the metrics with it."""
        num_classes = self._known_classes()
        if self.head_layers is not None:
            self.head_layers.install(self.backbone)
        layers, extra = self.read_layers, self.adapter.extra_channels
        if extra is not None and self.adapter_from:
            # An adapter trained elsewhere does not send zero, and knows nothing of these classes.
            extra = extra._replace(init="zero")
        head = LinearHead(
            self.backbone,
            num_classes,
            init=self.head_init,
            extra=extra,
            layers=0 if layers is None else layers.width,
            dropout=self.head_dropout,
        )
        metrics = _metrics(num_classes, self.leave_out)
        self.val_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")
        self.test_confusion = MulticlassConfusionMatrix(num_classes)
        return head

    def _known_classes(self) -> int:
        """K, from the argument or the data module.

        Raises:
            ValueError: Neither has it.
        """
        if self.num_classes is None:
            datamodule = getattr(self._trainer, "datamodule", None)
            self.num_classes = getattr(datamodule, "num_classes", None)
        if self.num_classes is None:
            raise ValueError(
                "The number of classes is not known: the data module has no num_classes. Set "
                "model.init_args.num_classes."
            )
        return self.num_classes

    def cached_splits(self) -> tuple[str, ...]:
        """Training and validation: their steps read `inputs`, labels and index."""
        return ("train", "val")

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Check the labels while they are on the CPU: on a GPU, a check would stall its stream."""
        if device.type != "cpu":  # if they stay on the CPU, the step checks them
            self._check_labels(batch)
        moved: Batch = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return moved

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean cross-entropy of a batch, with label smoothing."""
        self._check_labels(batch)
        logits: Tensor = self(self.inputs(batch))
        loss = F.cross_entropy(logits, batch["label"], label_smoothing=self.label_smoothing)
        right = (logits.detach().argmax(dim=-1) == batch["label"]).sum()
        shown = self._of_all_processes(loss.detach(), right, len(logits))
        self.log("train/loss", shown, prog_bar=True, on_step=True, on_epoch=False)
        return self.with_penalty(loss)

    def _of_all_processes(self, loss: Tensor, right: Tensor, images: int) -> Tensor:
        """The mean loss of all processes; the same exchange counts the right answers."""
        counts = torch.stack([right, torch.full_like(right, images)])
        if self._trainer is not None and self._trainer.world_size > 1:
            shared = torch.cat([loss.float()[None], counts.float()])
            shared = self._trainer.strategy.reduce(shared, reduce_op="sum")
            loss = (shared[0] / self._trainer.world_size).to(loss.dtype)
            counts = shared[1:].round().long()
        self.train_accuracy.add(counts)
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """The batches since the last step are part of this one."""
        self.train_accuracy.on_step()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the batches whose step is done."""
        self.train_accuracy.on_batch_end()

    def on_validation_epoch_end(self) -> None:
        """Log the training accuracy with that of validation."""
        if self.trainer.state.fn != "fit" or self.trainer.sanity_checking:
            return
        value = self.train_accuracy.read()
        if value is not None:
            self.log("train/accuracy", value, sync_dist=True)

    def on_train_epoch_end(self) -> None:
        """Log the training accuracy if no validation came after the last step.

        Not by Lightning's own log, which comes after the checkpoint of the epoch: a run that
        resumes from it would lack the row.
        """
        value = self.train_accuracy.read()
        if value is None:
            return
        row = {"train/accuracy": value, "epoch": self.trainer.current_epoch}
        for logger in self.trainer.loggers:
            logger.log_metrics(row, step=self.trainer.global_step - 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what was counted since the last validation."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["kora"]["train_accuracy"] = self.train_accuracy.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue to count from there, in training."""
        super().on_load_checkpoint(checkpoint)
        self.train_accuracy.load(checkpoint["kora"].get("train_accuracy", (0, 0)))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Gather the metrics of the validation part."""
        self._evaluate(batch, self.val_metrics, self.val_loss, "val/loss")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Gather the metrics, the confusion matrix and the outcomes of the test set."""
        logits = self._evaluate(batch, self.test_metrics, self.test_loss, "test/loss")
        self.test_confusion.update(logits, batch["label"])
        outcome = {"label": batch["label"], "prediction": logits.argmax(dim=-1)}
        self.tested.append(outcome | {key: batch[key] for key in ("index",) if key in batch})

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Most probable class and its probability; float32 on the CPU."""
        probabilities = self(self.inputs(batch)).float().softmax(dim=-1)
        confidence, prediction = probabilities.max(dim=-1)
        result = {"prediction": prediction, "confidence": confidence}
        result |= {key: batch[key] for key in ("index", "label") if key in batch}
        return {key: value.cpu() for key, value in result.items()}

    def on_test_start(self) -> None:
        """Reset the confusion matrix; Lightning resets only metrics that are logged."""
        self.test_confusion.reset()
        self.tested = []

    def _evaluate(
        self, batch: Batch, metrics: MetricCollection, mean_loss: MeanMetric, name: str
    ) -> Tensor:
        self._check_labels(batch)
        logits: Tensor = self(self.inputs(batch)).float()
        losses = F.cross_entropy(logits, batch["label"], reduction="none")
        mean_loss.update(losses)
        metrics.update(logits, batch["label"])
        self.log(name, mean_loss, on_step=False, on_epoch=True)
        for key, metric in metrics.items(keep_base=False):
            self.log(key, metric, on_step=False, on_epoch=True, prog_bar=key == self.monitor[0])
        return logits

    def _check_labels(self, batch: Batch) -> None:
        labels = batch.get("label")
        if labels is None or labels.device.type != "cpu":  # checked before it was moved
            return
        assert self.num_classes is not None
        if not labels.numel():
            return
        lowest, highest = labels.aminmax()  # one pass, as every batch is checked
        if lowest < 0 or highest >= self.num_classes:
            place = int(torch.nonzero((labels < 0) | (labels >= self.num_classes))[0])
            sample = f" (sample {int(batch['index'][place])})" if "index" in batch else ""
            raise ValueError(
                f"Label {int(labels[place])}{sample} is out of range; expected 0 to "
                f"{self.num_classes - 1}. Correct the data, or model.init_args.num_classes."
            )


def _metrics(num_classes: int, leave_out: Sequence[str]) -> MetricCollection:
    metrics: dict[str, Metric | MetricCollection] = {
        "accuracy": MulticlassAccuracy(num_classes, average="micro"),
        "weighted_f1": MulticlassF1Score(num_classes, average="weighted"),
        "macro_f1": MulticlassF1Score(num_classes, average="macro"),
    }
    if num_classes > 5:  # with five classes or fewer it is always 1
        metrics["top5_accuracy"] = MulticlassAccuracy(num_classes, average="micro", top_k=5)
    metrics = {name: metric for name, metric in metrics.items() if name not in leave_out}
    # By default torchmetrics merges metrics whose states are equal after the first batch: top-5
    # would share F1's top-1 counts if that batch is all right, or all wrong even within five.
    return MetricCollection(metrics, compute_groups=False)
