"""Metrics of detection over a whole data set, exact on one process and on many.

Shapes: B images of a batch, I images in all, K classes, N predicted and M true boxes of all images,
D predicted boxes of an image
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.detection import MeanAveragePrecision
from torchmetrics.utilities import dim_zero_cat

from kora.metrics.boxes import THRESHOLDS, match_boxes
from kora.metrics.order import each_once

__all__ = ["DetectionMetrics"]

Boxes = Sequence[Mapping[str, Tensor]]

_NO_INDEX = -1
_MOST = 100  # predicted boxes of an image that count, as COCO has it
_NAMES = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_100")
_PREDICTED = ("boxes", "scores", "labels")
_FILLED = 2 ** len(THRESHOLDS) - 1  # ignored at every threshold


class DetectionMetrics(Metric):
    """COCO's mean average precision and recall, of all images together.

    `map` is the mean over IoU 0.50, 0.55, ..., 0.95 and the classes that have a true box;
    `map_small`, `map_medium` and `map_large` divide boxes at 32 and 96 pixels squared. An image
    counts its 100 best boxes. What lies in a crowd region is neither right nor wrong.
    Source: Lin et al. 2014, arXiv:1405.0312; computed by faster-coco-eval.

    Args:
        num_classes: K.
    """

    is_differentiable = False
    full_state_update = False

    keys: list[Tensor]  # (B, 3) int64 each: index, number of predicted and of true boxes
    predicted: list[Tensor]  # (N, 8) float32 each: box, score, class, bits of hits and ignored
    true: list[Tensor]  # (M, 6) float32 each: box, class, crowd

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self._table: dict[str, Tensor] = {}
        self._of_class = torch.full((num_classes,), math.nan)
        for name in ("keys", "predicted", "true"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, predictions: Boxes, truths: Boxes, index_B: Tensor | None = None) -> None:
        """Add images: `boxes` (n, 4), `scores` and `labels` (n,); `boxes`, `labels` and `crowd`.

        Boxes are x1, y1, x2, y2 in pixels of the picture itself. Without `crowd` no true box is a
        crowd region. `compute` drops an image whose `index_B` (>= 0) came before: samplers of
        several processes repeat images to fill their last batch. Without an index nothing is
        dropped.
        """
        for number, (prediction, truth) in enumerate(zip(predictions, truths, strict=True)):
            index = _NO_INDEX if index_B is None else int(index_B[number])
            true = self._true(truth)
            predicted = self._predicted(prediction, true)
            key = torch.tensor([[index, len(predicted), len(true)]])
            self.keys.append(key.to(self.device))
            self.predicted.append(predicted.to(self.device))
            self.true.append(true.to(self.device))

    def _true(self, truth: Mapping[str, Tensor]) -> Tensor:
        labels = truth["labels"]
        crowd = truth.get("crowd", torch.zeros_like(labels))
        return self._rows(truth["boxes"], labels, crowd)

    def _predicted(self, prediction: Mapping[str, Tensor], true_M6: Tensor) -> Tensor:
        """The best boxes, by falling score, each with what it found."""
        boxes, scores, labels = (prediction[name] for name in _PREDICTED)
        best = scores.argsort(descending=True, stable=True)[:_MOST]
        rows = self._rows(boxes[best], scores[best], labels[best])
        box, _, label = np.split(rows.numpy(), [4, 5], axis=1)
        true, true_label, crowd = np.split(true_M6.numpy(), [4, 5], axis=1)
        bits = match_boxes(box, label[:, 0], true, true_label[:, 0], crowd[:, 0] > 0)
        return torch.cat([rows, torch.tensor(np.stack(bits, axis=1)).float()], dim=1)

    def _rows(self, boxes: Tensor, *columns: Tensor) -> Tensor:
        joined = [boxes.reshape(-1, 4), *(column[:, None] for column in columns)]
        return torch.cat([one.detach().float() for one in joined], dim=1).cpu()

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the boxes of all processes, including those that saw no image."""
        self.keys, self.predicted, self.true = ([rows] for rows in self._stored())
        super().sync(*args, **kwargs)

    def per_image(self) -> dict[str, Tensor]:
        """Of each image that counts: its `index` (I,), and what its predicted boxes found.

        `box_score`, `box_class`, and bits `box_hits` and `box_ignored` of the thresholds of IoU are
        (I, D), `box_true` (I, K) is the number of true boxes; see `kora.runs.outcomes.BoxOutcomes`.
        Images come in the order of their index (-1: none was given). Call on every process.
        """
        self.compute()  # from the cache if nothing was added since
        return dict(self._table)

    def per_class(self) -> Tensor:
        """AP (K,) of each class; NaN for one without a true box. Call on every process."""
        self.compute()
        return self._of_class

    def compute(self) -> dict[str, Tensor]:
        """`map`, `map_50`, `map_75`, `map_small`, `map_medium`, `map_large` and `mar_100`.

        NaN where there is no true box. Stores the outcome of each image for `per_image`.
        """
        keys, predicted, true = self._gathered()
        self._table = {"index": keys, **self._columns(predicted, true)}
        values, of_class = self._coco(predicted, true)
        self._of_class = of_class.to(self.device)
        return {name: value.to(self.device) for name, value in values.items()}

    def _coco(
        self, predicted: list[Tensor], true: list[Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The values of the data set, and AP (K,) of each class."""
        of_class = torch.full((self.num_classes,), math.nan)
        if not any((rows[:, 5] == 0).any() for rows in true):
            return {name: torch.tensor(math.nan) for name in _NAMES}, of_class
        # Each process has all images, so nothing is left to gather. The thresholds are those of
        # `pycocotools` to the last digit, which those of torchmetrics are not.
        coco = MeanAveragePrecision(
            iou_thresholds=THRESHOLDS.tolist(),
            rec_thresholds=np.linspace(0, 1, 101).tolist(),
            extended_summary=True,
            backend="faster_coco_eval",
            sync_on_compute=False,
        )
        coco.update(
            [{"boxes": r[:, :4], "scores": r[:, 4], "labels": r[:, 5].long()} for r in predicted],
            [
                {"boxes": r[:, :4], "labels": r[:, 4].long(), "iscrowd": r[:, 5].long()}
                for r in true
            ],
        )
        found = coco.compute()
        precision_TRK = found["precision"][..., 0, -1].float()  # all areas, 100 boxes an image
        ap_K = precision_TRK.mean(dim=(0, 1))
        of_class[found["classes"].reshape(-1).long()] = ap_K.masked_fill(ap_K < 0, math.nan)
        values = {name: found[name].float() for name in _NAMES}
        return {n: v.masked_fill(v < 0, math.nan) for n, v in values.items()}, of_class

    def _columns(self, predicted: list[Tensor], true: list[Tensor]) -> dict[str, Tensor]:
        """What the predicted boxes of each image found, filled with ignored ones to one number."""
        most = max((len(rows) for rows in predicted), default=0)
        rows_ID4 = torch.zeros(len(predicted), most, 4)
        rows_ID4[..., 3] = _FILLED
        for image, rows in enumerate(predicted):
            rows_ID4[image, : len(rows)] = rows[:, 4:]
        score, *others = rows_ID4.unbind(-1)
        table = {"box_score": score}
        for name, column in zip(("box_class", "box_hits", "box_ignored"), others, strict=True):
            table[name] = column.long()
        table["box_true"] = torch.zeros(len(true), self.num_classes, dtype=torch.long)
        for image, rows in enumerate(true):
            labels = rows[rows[:, 5] == 0, 4].long()
            table["box_true"][image] = labels.bincount(minlength=self.num_classes)
        return {name: column.to(self.device) for name, column in table.items()}

    def _gathered(self) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Index (I,), and predicted and true boxes of each image in its order, each once."""
        keys, predicted, true = self._stored()
        index, *counts = keys.unbind(1)
        rows = [
            torch.split(boxes.cpu(), count.tolist())
            for boxes, count in zip((predicted, true), counts, strict=True)
        ]
        kept = each_once(index)
        predicted_I, true_I = ([boxes[image] for image in kept.tolist()] for boxes in rows)
        return index[kept], predicted_I, true_I

    def _stored(self) -> tuple[Tensor, Tensor, Tensor]:
        """The rows of keys, predicted and true boxes so far."""
        if len(self.keys) == 0:
            return (
                torch.empty(0, 3, dtype=torch.long, device=self.device),
                torch.empty(0, 8, device=self.device),
                torch.empty(0, 6, device=self.device),
            )
        return dim_zero_cat(self.keys), dim_zero_cat(self.predicted), dim_zero_cat(self.true)
