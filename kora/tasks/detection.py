"""Object detection.

Shapes: B images, N boxes of a batch's fullest image, n boxes of one image, K classes, H and W
pixels of the images in a batch
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.recipe import ImageRecipe
from kora.adapters import Strategy
from kora.backbone.vit import Backbone
from kora.heads.detection import Boxes, DetectionHead, FCOSHead
from kora.metrics.detection import DetectionMetrics
from kora.metrics.detection_protocol import DetectionProtocol
from kora.tasks.dense import Batch, DenseTask, Size

__all__ = ["DetectionTask"]

_CONSTANT = "usual_boxes"


class DetectionTask(DenseTask):
    """A detector on a feature pyramid, evaluated by COCO's rules.

    Batches are dicts with `image` (B, 3, H, W), `boxes` float32 (B, N, 4), which are x1, y1, x2, y2
    in pixels of `image`, and `box_label` (B, N), -1 where there is no box; `index` (B,) names the
    images. `box_crowd` (B, N) marks regions that do not count, and are background in training. If
    the pictures were fitted into H x W, `own_size` (B, 2) holds their heights and widths, and
    `size` (B, 2) those that they have in `image`; boxes are then scored and predicted in their own
    pixels.
    Metrics: `map`, `map_50`, `map_75`, `map_small`, `map_medium`, `map_large` and `mar_100`; a size
    of which there is no box is left out.

    The test also scores a prediction that sees no image: the usual boxes of each class at their
    usual places, with the frequency of the class as their score (`usual_boxes`).
    Options besides these are those of `AdapterTask`.

    Args:
        backbone: The frozen vision transformer.
        adapter: The strategy; None trains pyramid and detector alone.
        num_classes: K; None takes it from the data module.
        head: FCOSHead, RetinaNetHead or FasterRCNNHead.
        protocol: Which boxes are scored: `coco`, or fields of a DetectionProtocol.

    Raises:
        ValueError: For batches without boxes, or a protocol for another split than the data's.
    """

    monitor = ("val/map", "max")
    val_metrics: DetectionMetrics
    test_metrics: DetectionMetrics

    def __init__(
        self,
        backbone: Backbone,
        adapter: Strategy | None = None,
        *,
        num_classes: int | None = None,
        head: DetectionHead | None = None,
        protocol: str | dict[str, Any] | DetectionProtocol = "coco",
        **kwargs: Any,
    ) -> None:
        if not isinstance(protocol, DetectionProtocol):
            protocol = DetectionProtocol.read(protocol)
        head = FCOSHead() if head is None else head
        super().__init__(backbone, adapter, head=head, protocol=protocol, **kwargs)
        self.num_classes = num_classes
        self._suffix = head.suffix
        self._usual: Boxes = {}  # in shares of height and width
        #: Average precision (K,) of each class, after a test.
        self.test_ap: Tensor | None = None
        #: True boxes (K,) of each class in the test.
        self.test_boxes: Tensor | None = None

    @property
    def label(self) -> str:
        """The label of the strategy; then `-RetinaNet` or `-FasterRCNN`, for such a head."""
        return self.adapter.label + self._suffix

    def configure_model(self) -> None:
        """Lightning's hook, as for every task.

        Raises:
            ValueError: The weights would be in half precision.
        """
        precision = self._trainer.precision if self._trainer is not None else None
        if precision in ("16-true", "bf16-true"):
            raise ValueError(
                f"trainer.precision is {precision}, in which the corners of boxes would be off by "
                "pixels. Use --trainer.precision bf16-mixed, or 32-true."
            )
        super().configure_model()

    def build_head(self) -> nn.Module:
        """The head, sized for backbone and classes, and the metrics with it."""
        if self.adapter.head_layers is not None or self.adapter.extra_channels is not None:
            raise ValueError(
                f"{self.adapter.label} is for classifiers: for detection, use LinearProbe, or KoRA "
                "with a TokenReadout. The pyramid reads the patch tokens of the last block."
            )
        num_classes = self.agreed_classes(self.num_classes, "box", _DATA)
        self.num_classes = num_classes
        self.val_metrics, self.test_metrics = (DetectionMetrics(num_classes) for _ in range(2))
        self.constant_metrics = nn.ModuleDict({_CONSTANT: DetectionMetrics(num_classes)})
        return self.take_head(num_classes, self.protocol)

    # -- steps ---------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The sum of the detector's losses."""
        truths = self.truths(batch, self._to_backbone(batch))
        for truth in truths:
            kept = ~truth.pop("crowd")
            truth |= {name: truth[name][kept] for name in ("boxes", "labels")}
        losses = self._head.losses(self(self.inputs(batch)), truths)
        loss: Tensor = torch.stack(list(losses.values())).sum()
        return self.minimised(loss)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """`boxes` (B, N, 4) in each picture's own pixels, `scores` and `labels` (B, N), on the CPU.

        The best come first; a label is -1 where there is no box.
        """
        found = self.boxes_of(batch)
        most = max(1, *(len(one["scores"]) for one in found))
        result = {
            "boxes": torch.zeros(len(found), most, 4),
            "scores": torch.zeros(len(found), most),
            "labels": torch.full((len(found), most), -1),
        }
        for row, one in enumerate(found):
            for name, column in result.items():
                column[row, : len(one[name])] = one[name]
        return result | {k: batch[k].cpu() for k in ("index", "own_size") if k in batch}

    def _evaluate(self, batch: Batch, metrics: DetectionMetrics) -> None:
        truths, index = self.truths(batch, self.to_own(batch)), batch.get("index")
        metrics.update(self.boxes_of(batch), truths, index)
        if self._constants_known:
            sizes = self._own_sizes(batch)
            guesses = [
                {**self._usual, "boxes": self._usual["boxes"] * _factors(size, self.device)}
                for size in sizes
            ]
            self.constant_metrics[_CONSTANT].update(guesses, truths, index)  # type: ignore[operator]

    def boxes_of(self, batch: Batch) -> list[Boxes]:
        """Of each image the predicted `boxes` (n, 4) in its own pixels, `scores` and `labels`."""
        factors_B4 = self.to_own(batch) / self._to_backbone(batch)
        return self._in_pictures(self(self.inputs(batch)), factors_B4, self._own_sizes(batch))

    def own_boxes(
        self, levels: list[Tensor], sizes: Sequence[Size], recipe: ImageRecipe
    ) -> list[Boxes]:
        """As `boxes_of`, from the head's output for pictures of these sizes, fitted by `recipe`."""
        seen, factors = self.backbone.size, []
        for size in sizes:
            pixels, content = recipe.fitted(size), recipe.fitted_content(size)
            ratios = [size[n] / content[n] * pixels[n] / seen[n] for n in (0, 1)]
            factors.append(_factors(ratios, levels[0].device))
        return self._in_pictures(levels, torch.stack(factors), sizes)

    def _in_pictures(
        self, levels: list[Tensor], factors_B4: Tensor, sizes: Sequence[Size]
    ) -> list[Boxes]:
        """Detections times factors, less what lies beside the picture, in the filling."""
        found = []
        for one, factor_4, size in zip(
            self._head.detections(levels), factors_B4, sizes, strict=True
        ):
            boxes_n4 = (one["boxes"] * factor_4).minimum(_factors(size, factor_4.device))
            there_n = (boxes_n4[:, 2:] > boxes_n4[:, :2]).all(dim=1)
            found.append({n: v[there_n] for n, v in {**one, "boxes": boxes_n4}.items()})
        return found

    def cached_splits(self) -> tuple[str, ...]:
        """Training and validation: the model sees each image once."""
        return ("train", "val")

    @property
    def _head(self) -> DetectionHead:
        assert isinstance(self.head, DetectionHead), "build() comes first"
        return self.head

    def truths(self, batch: Batch, factors_B4: Tensor) -> list[Boxes]:
        """`boxes` (n, 4) times these factors, `labels` (n,) and `crowd` (n,) of each image."""
        if "boxes" not in batch:
            raise ValueError(f"Batches hold {', '.join(batch)} and no boxes. {_DATA}")
        crowd_BN = batch.get("box_crowd", torch.zeros_like(batch["box_label"], dtype=torch.bool))
        return [
            {"boxes": (boxes * factor)[there], "labels": labels[there], "crowd": crowd[there]}
            for boxes, labels, crowd, factor, there in zip(
                batch["boxes"], batch["box_label"], crowd_BN, factors_B4, batch["box_label"] >= 0,
                strict=True,
            )
        ]  # fmt: skip

    # -- sizes ---------------------------------------------------------------------------------

    def _image_size(self, batch: Batch) -> Size:
        """H and W of the images of a batch, also if only their features were kept."""
        data = getattr(self._trainer, "datamodule", None)
        size = batch["image"].shape[-2:] if "image" in batch else data.image_size  # type: ignore[union-attr]
        return int(size[0]), int(size[1])

    def _own_sizes(self, batch: Batch) -> list[Size]:
        """Height and width of each picture itself."""
        if "own_size" in batch:
            return [(int(rows), int(columns)) for rows, columns in batch["own_size"].tolist()]
        return [self._image_size(batch)] * len(next(iter(batch.values())))

    def _to_backbone(self, batch: Batch) -> Tensor:
        """Factors (B, 4) from boxes in `image` to pixels of the backbone's input."""
        size, seen = self._image_size(batch), self.backbone.size
        factor_4 = _factors((seen[0] / size[0], seen[1] / size[1]), self.device)
        return factor_4.expand(len(next(iter(batch.values()))), 4)

    def to_own(self, batch: Batch) -> Tensor:
        """Factors (B, 4) from boxes in `image` to the pictures' own pixels."""
        if "own_size" not in batch:
            return torch.ones(len(next(iter(batch.values()))), 4, device=self.device)
        ratios_B2 = batch["own_size"] / batch["size"]
        return ratios_B2.flip(-1).repeat(1, 2).to(self.device)

    # -- epochs --------------------------------------------------------------------------------

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test set, and keep the outcome of each image."""
        table = self.test_metrics.per_image()  # of all processes
        self.tested = [table]
        self.test_ap, self.test_boxes = self.test_metrics.per_class(), table["box_true"].sum(dim=0)
        self.log_metrics(self.test_metrics, "test")
        self.test_metrics.reset()

    def _values(self, metrics: DetectionMetrics) -> dict[str, Tensor]:
        values = metrics.compute()  # NaN: there is no box of this size
        return {name: value for name, value in values.items() if not value.isnan()}

    def learn_constants(self, datamodule: Any) -> bool:
        """The usual boxes of each class, and how often the class occurs."""
        if not hasattr(datamodule, "box_statistics"):
            return False
        found = datamodule.box_statistics("train")
        places_KP4 = torch.as_tensor(found.places).float()
        labels_KP = torch.arange(len(places_KP4))[:, None].expand(places_KP4.shape[:2])
        often_K = torch.as_tensor(found.frequency).float()
        scores_KP = (often_K / often_K.sum().clamp(min=1e-9))[:, None].expand(labels_KP.shape)
        there_KP = places_KP4.isfinite().all(dim=-1)
        self._usual = {
            name: values[there_KP].to(self.device)
            for name, values in (
                ("boxes", places_KP4),
                ("scores", scores_KP),
                ("labels", labels_KP),
            )
        }
        return True


_DATA = (
    "DetectionTask needs data with boxes: datamodules.DetectionFolder, or datamodules.Synthetic "
    "with data.maps: [boxes]."
)


def _factors(size: Sequence[float], device: torch.device) -> Tensor:
    """(height, width) as width, height, width, height, to scale x1, y1, x2, y2."""
    height, width = float(size[0]), float(size[1])
    return torch.tensor([width, height, width, height], device=device)
