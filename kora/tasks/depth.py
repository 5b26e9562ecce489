"""Monocular depth in metres. Shapes: B images, H and W pixels of the truth, h and w of the head."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.adapters import Strategy
from kora.backbone.frozen_inputs import Inputs
from kora.backbone.vit import Backbone
from kora.heads import DepthHead, LinearDepth
from kora.losses import DepthLoss, SILogLoss
from kora.metrics.depth import DepthMetrics
from kora.metrics.protocol import DepthProtocol
from kora.tasks.dense import Batch, DenseTask

__all__ = ["DepthTask"]


class DepthTask(DenseTask):
    """A dense head trained on measured pixels, evaluated on a stated protocol.

    Batches are dicts with `image` (B, 3, H, W) and `depth_m` (B, H, W), float32 metres, 0 where
    nothing was measured; `index` (B,) names the images. The test also scores two constants: the
    mean training depth everywhere (`mean_depth`) and at each pixel (`mean_map`).
    Options besides these are those of `AdapterTask`.

    Args:
        backbone: The frozen vision transformer.
        adapter: The strategy; None trains the head alone.
        head: LinearDepth, as DINOv2 evaluates, or DPTDepth.
        loss: SILogLoss, or ScaleShiftInvariantLoss for depth up to scale and shift.
        protocol: How the evaluation counts: `eigen`, `full`, or each field of a DepthProtocol.

    Raises:
        ValueError: For batches without depth, or a protocol for another split than the data's.
    """

    monitor = ("val/rmse_m", "min")
    val_metrics: DepthMetrics
    test_metrics: DepthMetrics

    def __init__(
        self,
        backbone: Backbone,
        adapter: Strategy | None = None,
        *,
        head: DepthHead | None = None,
        loss: DepthLoss | None = None,
        protocol: str | dict[str, Any] | DepthProtocol = "eigen",
        **kwargs: Any,
    ) -> None:
        if not isinstance(protocol, DepthProtocol):
            protocol = DepthProtocol.read(protocol)
        head = LinearDepth() if head is None else head
        super().__init__(backbone, adapter, head=head, protocol=protocol, **kwargs)
        self.loss = SILogLoss() if loss is None else loss
        self.val_metrics = DepthMetrics(protocol)
        self.test_metrics = DepthMetrics(protocol)
        self.constant_metrics = nn.ModuleDict(
            {kind: DepthMetrics(protocol) for kind in ("mean_depth", "mean_map")}
        )
        self._mean_depth_m = 0.0
        self._mean_map: Tensor | None = None  # (H, W), metres

    def build_head(self) -> nn.Module:
        """The head, sized for the backbone, which then returns the levels that the head reads."""
        if self.adapter.head_layers is not None:
            raise ValueError(
                f"{self.adapter.label} is for classifiers: for depth, use LinearProbe. The heads "
                "of depth read several levels by themselves (LinearDepth: four)."
            )
        return self.take_head()

    # -- steps ---------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss over measured pixels in range, at the resolution of the truth."""
        truth_BHW = self._truth(batch)
        predicted_Bhw: Tensor = self(self.inputs(batch))
        predicted_BHW = _resized(predicted_Bhw, truth_BHW.shape[-2:])
        loss: Tensor = self.loss(predicted_BHW, truth_BHW, self.protocol.in_range(truth_BHW))
        return self.minimised(loss)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Depth in metres at the size of the images, float32 on the CPU, inside the range."""
        images = batch["image"]
        size = (images.shape[-2], images.shape[-1])
        result = {"depth_m": self.at_size(self.flipped_mean(images), size)}
        result |= {key: batch[key] for key in ("index",) if key in batch}
        return {key: value.cpu() for key, value in result.items()}

    def _evaluate(self, batch: Batch, metrics: DepthMetrics) -> None:
        truth, index = self._truth(batch), batch.get("index")
        metrics.update(self.flipped_mean(self.inputs(batch)), truth, index)
        if not self._constants_known:
            return
        assert self._mean_map is not None
        flat = torch.full_like(self._mean_map, self._mean_depth_m)
        for kind, constant in (("mean_depth", flat), ("mean_map", self._mean_map)):
            self._constant(kind).update(constant.expand(len(truth), -1, -1), truth, index)

    def cached_splits(self) -> tuple[str, ...]:
        """Training, and validation unless `flip_tta` feeds mirrored images to the model."""
        return ("train",) if self.protocol.flip_tta else ("train", "val")

    def flipped_mean(self, images: Tensor | Inputs) -> Tensor:
        """Prediction (B, h, w), averaged with that of the mirrored image if `flip_tta` is set."""
        predicted: Tensor = self(images).float()
        if self.protocol.flip_tta:
            assert isinstance(images, Tensor), "cached_splits leaves this one out"
            predicted = (predicted + self(images.flip(-1)).float().flip(-1)) / 2
        return predicted

    def at_size(self, depth_Bhw: Tensor, size: tuple[int, int]) -> Tensor:
        """Predictions as depth in metres (B, *size), float32, inside the range of the protocol."""
        limits = (self.protocol.min_depth_m, self.protocol.max_depth_m)
        return _resized(depth_Bhw, torch.Size(size)).clamp(*limits)

    def answer(self, output: Tensor, size: tuple[int, int]) -> Tensor:
        """Depth in metres (B, *size), inside the range of the protocol."""
        return self.at_size(output.float(), size)

    def _truth(self, batch: Batch) -> Tensor:
        if "depth_m" not in batch:
            raise ValueError(
                f"Batches hold {', '.join(batch)} and no depth_m. DepthTask needs data with depth: "
                "datamodules.NYUDepthV2, or datamodules.Synthetic with data.maps: [depth_m]."
            )
        return batch["depth_m"]

    def _constant(self, kind: str) -> DepthMetrics:
        metrics = self.constant_metrics[kind]
        assert isinstance(metrics, DepthMetrics)
        return metrics

    # -- epochs --------------------------------------------------------------------------------

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test set, and keep those of each image."""
        self.tested = [self.test_metrics.per_image()]  # of all processes
        self.log_metrics(self.test_metrics, "test")
        self.test_metrics.reset()

    def _values(self, metrics: DepthMetrics) -> dict[str, Tensor]:
        values = metrics.compute()  # which counts those that it skips
        return {**values, "skipped_images": values["rmse_m"].new_tensor(metrics.skipped)}

    def learn_constants(self, datamodule: Any) -> bool:
        """The mean training depth, everywhere and at each pixel."""
        if not hasattr(datamodule, "depth_statistics"):
            return False
        found = datamodule.depth_statistics("train")
        self._mean_depth_m = float(found.mean_m)
        self._mean_map = torch.as_tensor(found.mean_map).to(self.device)
        return True


def _resized(depth: Tensor, size: torch.Size) -> Tensor:
    """(B, h, w) to (B, *size), float32, bilinear."""
    if depth.shape[-2:] == size:
        return depth.float()
    return F.interpolate(
        depth.float()[:, None], size=tuple(size), mode="bilinear", align_corners=False
    )[:, 0]
