"""Semantic segmentation.

Shapes: B images, K classes, H and W pixels of a mask or an image, h and w of the head's logits
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.segmentation.masks import IGNORED
from kora.adapters import Strategy
from kora.backbone.frozen_inputs import Inputs
from kora.backbone.images import resized
from kora.backbone.vit import Backbone
from kora.heads import LinearSegmentation, SegmentationHead
from kora.losses import SegmentationLoss
from kora.metrics.areas import mean_iou
from kora.metrics.segmentation import SegmentationMetrics
from kora.metrics.segmentation_protocol import SegmentationProtocol
from kora.tasks.dense import Batch, DenseTask, Size
from kora.tasks.windows import averaged_windows, covering

__all__ = ["SegmentationTask"]

_CONSTANTS = ("majority", "mode_map")
_MOST_GROUPS = 10
_DATA = (
    "SegmentationTask needs data with masks: datamodules.SegmentationFolder, or "
    "datamodules.Synthetic with data.maps: [mask]."
)


class SegmentationTask(DenseTask):
    """A head that gives each pixel a class, evaluated on a stated protocol.

    Batches are dicts with `image` (B, 3, H, W) and `mask` uint8 (B, H, W), whose pixels of 255 do
    not count; `index` (B,) names the images. Images or masks of several sizes are padded, with
    their heights and widths in `size` (B, 2) and `mask_size` (B, 2). Metrics: `miou`,
    `pixel_accuracy`, and in the test `boundary_miou`, and `miou` of each group of test images that
    the data module names (`group_names`), if there are 2 to 10.

    The test also scores two predictions that see no image: the most frequent class of the training
    masks (`majority`), and the most frequent class at each place of the picture (`mode_map`).
    Options besides these are those of `AdapterTask`.

    Args:
        backbone: The frozen vision transformer.
        adapter: The strategy; None trains the head alone.
        num_classes: K; None takes it from the data module.
        head: LinearSegmentation, as DINOv2 evaluates, by default on four levels; DPTSegmentation;
            or QuerySegmentation.
        loss: The weights of its terms; cross-entropy by default.
        protocol: How the evaluation counts: `whole`, `slide`, or fields of a SegmentationProtocol.

    Raises:
        ValueError: For batches without masks, or a protocol for another split than the data's.
    """

    monitor = ("val/miou", "max")
    val_metrics: SegmentationMetrics
    test_metrics: SegmentationMetrics

    def __init__(
        self,
        backbone: Backbone,
        adapter: Strategy | None = None,
        *,
        num_classes: int | None = None,
        head: SegmentationHead | None = None,
        loss: SegmentationLoss | None = None,
        protocol: str | dict[str, Any] | SegmentationProtocol = "whole",
        **kwargs: Any,
    ) -> None:
        if not isinstance(protocol, SegmentationProtocol):
            protocol = SegmentationProtocol.read(protocol)
        head = LinearSegmentation(levels=4) if head is None else head
        super().__init__(backbone, adapter, head=head, protocol=protocol, **kwargs)
        self.num_classes = num_classes
        self.loss = SegmentationLoss() if loss is None else loss
        self._suffix = head.suffix
        #: IoU (K,) of each class, and its share (K,) of the counted pixels, after a test.
        self.test_iou: Tensor | None = None
        self.test_shares: Tensor | None = None
        self._majority = 0
        self._mode_map: Tensor | None = None  # uint8 (h, w)

    @property
    def label(self) -> str:
        """The label of the strategy; then `-one-level`, `-DPT` or `-queries`, for such a head."""
        return self.adapter.label.removesuffix(self._suffix) + self._suffix

    def build_head(self) -> nn.Module:
        """The head, sized for backbone and classes, and the metrics with it."""
        if self.adapter.head_layers is not None or self.adapter.extra_channels is not None:
            raise ValueError(
                f"{self.adapter.label} is for classifiers: for segmentation, use LinearProbe, or "
                "KoRA with a TokenReadout or a QueryReadout. The heads read several levels by "
                "themselves (LinearSegmentation: levels: 4)."
            )
        num_classes = self.agreed_classes(self.num_classes, "mask", _DATA)
        self.num_classes = num_classes
        self.val_metrics = SegmentationMetrics(num_classes)
        self.test_metrics = SegmentationMetrics(num_classes, boundary=True)
        self.constant_metrics = nn.ModuleDict(
            {kind: SegmentationMetrics(num_classes, boundary=True) for kind in _CONSTANTS}
        )
        return self.take_head(num_classes, self.adapter.query_channels)

    # -- steps ---------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss over pixels that count, at the resolution of the masks."""
        mask_BHW = self._truth(batch)
        logits_BKhw: Tensor = self(self.inputs(batch))
        loss: Tensor = self.loss(_enlarged(logits_BKhw, mask_BHW.shape[-2:]), mask_BHW)
        return self.minimised(loss)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """`mask` uint8 (B, H, W) on the CPU, and `mask_size` (B, 2) if masks are padded with 255.

        Its size is that of the mask if there is one, else that of the image.
        """
        sizes = _sizes(batch, "mask" if "mask" in batch else "image")
        found = list(self.masks_of(batch, sizes))
        height, width = (max(size[side] for size in sizes) for side in (0, 1))
        mask_BHW = found[0].new_full((len(found), height, width), IGNORED)
        for row, mask_HW in enumerate(found):
            mask_BHW[row, : mask_HW.shape[0], : mask_HW.shape[1]] = mask_HW
        result = {"mask": mask_BHW, "mask_size": torch.tensor(sizes)}
        result |= {key: batch[key] for key in ("index",) if key in batch}
        return {key: value.cpu() for key, value in result.items()}

    def _evaluate(self, batch: Batch, metrics: SegmentationMetrics) -> None:
        sizes = _sizes(batch, "mask")
        whole_BHW = self._truth(batch)
        truths = [
            mask[:rows, :columns] for mask, (rows, columns) in zip(whole_BHW, sizes, strict=True)
        ]
        index = batch.get("index")
        metrics.update(list(self.masks_of(batch, sizes)), truths, index)
        if not self._constants_known:
            return
        for kind in _CONSTANTS:
            guesses = [self._guess(kind, truth) for truth in truths]
            self._constant(kind).update(guesses, truths, index)

    def masks_of(self, batch: Batch, sizes: Sequence[Size]) -> Iterator[Tensor]:
        """The predicted classes of each image, uint8 (H, W) each, at these sizes."""
        for logits_KHW in self.scores_of(batch, sizes):
            yield logits_KHW.argmax(dim=0).to(torch.uint8)

    def scores_of(self, batch: Batch, sizes: Sequence[Size]) -> Iterator[Tensor]:
        """The scores (K, H, W) of each image, at these sizes, as the protocol says.

        They are logits; probabilities, if the protocol averages several scales or mirrored images.
        """
        protocol = self.protocol
        if protocol.window == "whole":
            yield from self._whole(batch, sizes)
            return
        for row, size in enumerate(sizes):
            rows, columns = _sizes(batch, "image")[row]
            image_3HW = batch["image"][row, :, :rows, :columns]
            yield self._slid(image_3HW, size)

    def _whole(self, batch: Batch, sizes: Sequence[Size]) -> Iterator[Tensor]:
        if "size" in batch and "image" in batch:  # each without its padding
            own = zip(batch["image"], _sizes(batch, "image"), strict=True)
            size, how = self.backbone.size, self.backbone.interpolation
            fitted = [resized(one[None, :, :high, :wide], size, how) for one, (high, wide) in own]
            batch = {**batch, "image": torch.cat(fitted)}
        seen = self._both(self.inputs(batch))
        for row, size in enumerate(sizes):
            yield _averaged([_enlarged(each[row : row + 1], size) for each in seen])[0]

    def whole_scores(self, images: Tensor, size: Size) -> Tensor:
        """The scores (B, K, *size) of whole images (B, 3, h, w)."""
        return _averaged([_enlarged(each, size) for each in self._both(images)])

    def answer(self, output: Tensor, size: Size) -> Tensor:
        """Scores (B, K, *size)."""
        return _enlarged(output, size)

    def _both(self, inputs: Tensor | Inputs) -> list[Tensor]:
        """Logits (B, K, h, w), and with `flip_tta` those of the mirrored images, mirrored."""
        seen = [self(inputs).float()]
        if self.protocol.flip_tta:
            assert isinstance(inputs, Tensor), "cached_splits leaves this one out"
            seen.append(self(inputs.flip(-1)).float().flip(-1))
        return seen

    def _slid(self, image_3HW: Tensor, size: Size) -> Tensor:
        protocol, window = self.protocol, self.backbone.size
        seen = []
        for scale in protocol.scales:
            shown = covering(image_3HW, window, scale, self.backbone.interpolation)
            for mirrored in (False, True) if protocol.flip_tta else (False,):
                whole = shown.flip(-1) if mirrored else shown
                logits_KHW = averaged_windows(self, whole, window, protocol.stride)
                logits_KHW = logits_KHW.flip(-1) if mirrored else logits_KHW
                seen.append(_enlarged(logits_KHW[None], size))
        return _averaged(seen)[0]

    def cached_splits(self) -> tuple[str, ...]:
        """Training, and validation if the model sees each image once, whole."""
        once = self.protocol.window == "whole" and not self.protocol.flip_tta
        return ("train", "val") if once else ("train",)

    def _truth(self, batch: Batch) -> Tensor:
        if "mask" not in batch:
            raise ValueError(f"Batches hold {', '.join(batch)} and no mask. {_DATA}")
        return batch["mask"]

    def _guess(self, kind: str, truth_HW: Tensor) -> Tensor:
        """A prediction that sees no image, at the size of a truth."""
        if kind == "majority":
            return torch.full_like(truth_HW, self._majority)
        assert self._mode_map is not None
        size, map_11hw = truth_HW.shape[-2:], self._mode_map[None, None].float()
        return F.interpolate(map_11hw, tuple(size), mode="nearest-exact")[0, 0].to(torch.uint8)

    def _constant(self, kind: str) -> SegmentationMetrics:
        metrics = self.constant_metrics[kind]
        assert isinstance(metrics, SegmentationMetrics)
        return metrics

    # -- epochs --------------------------------------------------------------------------------

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test set and of its groups, and keep the areas of each image."""
        table = self.test_metrics.per_image()  # of all processes
        self.tested = [table]
        self.log_metrics(self.test_metrics, "test")
        taken: set[str] = set()
        for number, (name, miou) in enumerate(self._of_groups(table).items()):
            plain = "".join(letter if letter.isalnum() else "_" for letter in name)
            plain = f"{plain}_{number}" if plain in taken else plain  # a number each
            taken.add(plain)
            self.log(f"test/miou_{plain}", miou.float(), sync_dist=True)
        self.test_iou = self.test_metrics.iou()
        true_K = table["true"].sum(dim=0)
        self.test_shares = true_K / true_K.sum().clamp(min=1)
        self.test_metrics.reset()

    def _of_groups(self, table: dict[str, Tensor]) -> dict[str, Tensor]:
        """mIoU of each group of test images; empty for less than 2 or more than 10 groups."""
        named = getattr(self.trainer.datamodule, "group_names", None)  # type: ignore[attr-defined]
        names = None if named is None else named("test")
        index_I = table["index"].cpu()
        if names is None or not len(index_I) or int(index_I.min()) < 0:
            return {}
        of_image = [names[int(index)] for index in index_I]
        groups = sorted(set(of_image))
        if not 2 <= len(groups) <= _MOST_GROUPS:
            return {}
        areas_I3K = torch.stack([table[n] for n in ("overlap", "predicted", "true")], dim=1)
        return {
            group: mean_iou(areas_I3K[[name == group for name in of_image]].sum(dim=0))
            for group in groups
        }

    def learn_constants(self, datamodule: Any) -> bool:
        """The most frequent class of the training masks, of all pixels and at each place."""
        if not hasattr(datamodule, "mask_statistics"):
            return False
        found = datamodule.mask_statistics("train")
        self._majority = found.majority
        self._mode_map = torch.as_tensor(found.mode_map).to(self.device)
        return True


def _enlarged(logits_BKhw: Tensor, size: Sequence[int]) -> Tensor:
    """(B, K, h, w) to (B, K, *size), float32, bilinear."""
    if logits_BKhw.shape[-2:] == tuple(size):
        return logits_BKhw.float()
    return F.interpolate(logits_BKhw.float(), tuple(size), mode="bilinear", align_corners=False)


def _averaged(seen: Sequence[Tensor]) -> Tensor:
    """Logits (B, K, H, W) alone, or the mean of the probabilities of several."""
    if len(seen) == 1:
        return seen[0]
    return torch.stack([logits.softmax(dim=1) for logits in seen]).mean(dim=0)


def _sizes(batch: Batch, what: str) -> list[Size]:
    """Height and width of each image or mask of a batch, without padding."""
    given = batch.get({"image": "size", "mask": "mask_size"}[what])
    if given is not None:
        return [(int(rows), int(columns)) for rows, columns in given.tolist()]
    height, width = batch[what].shape[-2:]
    return [(height, width)] * len(batch[what])
