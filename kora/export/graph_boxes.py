"""torchvision's detectors in operations that an ONNX graph has, for any number of images.

Their own code keeps as many boxes as it finds, which is no shape of a graph. Here, all candidates
stay, and those that are suppressed lose their score. Suppression is ONNX's NonMaxSuppression, which
separates images and classes itself.

Shapes: B images, C classes, K classes with the background if the detector has one, M candidates, P
proposals of an image, n boxes of an image, H and W pixels
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FCOS, FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import batched_nms, roi_align

from datamodules.recipe import ImageRecipe
from kora.export.graph_resize import content_size, length
from kora.heads.detection import DetectionHead

__all__ = ["found_boxes", "own_boxes", "translations"]

_NONE = -1.0  # the score of a candidate that is none
_SMALLEST = 1e-2  # side of a box of Faster R-CNN, in pixels


def own_boxes(
    head: DetectionHead, levels: list[Tensor], images: Tensor, recipe: ImageRecipe
) -> tuple[Tensor, Tensor, Tensor]:
    """`boxes` (B, n, 4) in pixels of `images` (B, 3, H, W), `scores` and `labels` (B, n).

    The best come first. Then, where there is none, the label is -1, and score and box are 0.
    """
    assert head.size is not None
    boxes_Bn4, scores_Bn, labels_Bn = found_boxes(head, levels)
    content = content_size(images, recipe)
    fixed = recipe.fit is not None and recipe.size is not None
    own = recipe.size if recipe.fit == "crop" else None
    factors, most = [], []
    for side, axis in ((1, -1), (0, -2)):  # x, then y
        whole = length(images, axis) if own is None else _number(own[side])
        pixels = _number(recipe.size[side]) if fixed else content[side]  # type: ignore[index]
        factors.append((whole / content[side] * pixels / head.size[side]).float())
        most.append(whole.float())
    boxes_Bn4 = (boxes_Bn4 * torch.stack([*factors, *factors])).minimum(torch.stack([*most, *most]))
    there_Bn = (scores_Bn > 0) & (boxes_Bn4[..., 2:] > boxes_Bn4[..., :2]).all(dim=-1)
    # Those that lie in the filling were among the best.
    scores_Bn, at_Bn = torch.where(there_Bn, scores_Bn, 0.0).topk(scores_Bn.shape[1])
    there_Bn = scores_Bn > 0
    return (
        torch.where(there_Bn[..., None], _rows(boxes_Bn4, at_Bn), 0.0),
        scores_Bn,
        torch.where(there_Bn, labels_Bn.gather(1, at_Bn), -1),
    )


def found_boxes(head: DetectionHead, levels: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """`boxes` (B, n, 4) in pixels of the backbone's input, `scores` and `labels` (B, n).

    The best come first; the score of those that are none is negative.
    """
    detector: Any = head.detector
    levels = [level.float() for level in levels]
    if isinstance(detector, FasterRCNN):
        of_boxes = detector.roi_heads
        candidates = _second_stage(head, levels)
        most = of_boxes.detections_per_img
    else:
        of_boxes, candidates = detector, _single_stage(head, levels)
        most = detector.detections_per_img
    boxes_BM4, scores_BM, labels_BM = candidates
    return _best(boxes_BM4, scores_BM, labels_BM, of_boxes.nms_thresh, of_boxes.score_thresh, most)


def _single_stage(head: DetectionHead, levels: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates of FCOS or RetinaNet: the best of each level."""
    detector: Any = head.detector
    given = detector.head(levels)
    scores_BAC = given["cls_logits"].sigmoid()
    if isinstance(detector, FCOS):
        scores_BAC = (scores_BAC * given["bbox_ctrness"].sigmoid()).sqrt()
    boxes_BA4 = _decoded(detector.box_coder, given["bbox_regression"], _anchors(head, levels))
    boxes_BA4 = _clipped(boxes_BA4, head)
    classes = scores_BAC.shape[-1]
    places = [level.shape[-2] * level.shape[-1] for level in levels]
    anchors = [n * a for n, a in zip(places, _of_place(detector), strict=True)]
    found = []
    for scores_BaC, boxes_Ba4 in zip(
        *(torch.split(each, anchors, dim=1) for each in (scores_BAC, boxes_BA4)), strict=True
    ):
        most = min(detector.topk_candidates, scores_BaC.shape[1] * classes)
        scores_BM, at_BM = scores_BaC.flatten(1).topk(most)
        found.append((_rows(boxes_Ba4, at_BM // classes), scores_BM, at_BM % classes))
    boxes, scores, labels = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    return boxes, scores, labels


def _second_stage(head: DetectionHead, levels: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates of Faster R-CNN: each proposal as each class."""
    of_boxes: Any = head.detector.roi_heads
    boxes_BP4, there_BP = _proposals(head, levels)
    images, proposals = boxes_BP4.shape[:2]
    of_image_BP1 = torch.arange(images).float()[:, None, None].expand(images, proposals, 1)
    rois = torch.cat([of_image_BP1, boxes_BP4], dim=-1).flatten(0, 1)
    pool = of_boxes.box_roi_pool
    sizes = list(pool.output_size)
    pooled: Any = 0.0
    of_level = pool.map_levels([rois[:, 1:]])[:, None, None, None]
    for number, (level, scale) in enumerate(zip(levels, pool.scales, strict=True)):
        of_rois = roi_align(level, rois, sizes, scale, pool.sampling_ratio)
        pooled = torch.where(of_level == number, of_rois, pooled)
    logits, deltas = of_boxes.box_predictor(of_boxes.box_head(pooled))
    classes = logits.shape[-1]
    decoded = of_boxes.box_coder.decode_single(deltas, rois[:, 1:])
    boxes_BPC4 = _clipped(decoded.view(images, proposals, classes, 4)[:, :, 1:], head)
    scores_BPC = logits.softmax(dim=-1).view(images, proposals, classes)[:, :, 1:]
    kept_BPC = there_BP[..., None] & (_shortest(boxes_BPC4) >= _SMALLEST)
    scores_BM = torch.where(kept_BPC, scores_BPC, _NONE).flatten(1)
    labels_BM = torch.arange(classes - 1).repeat(proposals).expand(scores_BM.shape)
    return boxes_BPC4.flatten(1, 2), scores_BM, labels_BM


def _proposals(head: DetectionHead, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Proposals (B, P, 4), and which of them there are (B, P)."""
    rpn: Any = head.detector.rpn
    objectness, deltas = rpn.head(levels)
    anchors = [one.shape[1] * one.shape[2] * one.shape[3] for one in objectness]
    images = levels[0].shape[0]
    flat, flat_deltas = concat_box_prediction_layers(objectness, deltas)
    scores_BA = flat.view(images, sum(anchors)).sigmoid()
    deltas_BA4 = flat_deltas.view(images, sum(anchors), 4)
    boxes_BA4 = _clipped(_decoded(rpn.box_coder, deltas_BA4, _anchors(head, levels)), head)
    found = []
    for number, (scores_Ba, boxes_Ba4) in enumerate(
        zip(*(torch.split(each, anchors, dim=1) for each in (scores_BA, boxes_BA4)), strict=True)
    ):
        scores_BM, at_BM = scores_Ba.topk(min(rpn.pre_nms_top_n(), scores_Ba.shape[1]))
        found.append((_rows(boxes_Ba4, at_BM), scores_BM, torch.full_like(at_BM, number)))
    boxes_BM4, scores_BM, levels_BM = (torch.cat(p, dim=1) for p in zip(*found, strict=True))
    scores_BM = torch.where(_shortest(boxes_BM4) >= rpn.min_size, scores_BM, _NONE)
    boxes_BP4, scores_BP, _ = _best(
        boxes_BM4, scores_BM, levels_BM, rpn.nms_thresh, _NONE / 2, rpn.post_nms_top_n()
    )
    return boxes_BP4, scores_BP >= rpn.score_thresh


def _best(
    boxes_BM4: Tensor, scores_BM: Tensor, labels_BM: Tensor, iou: float, least: float, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What is left of candidates after suppression within each class, at most `most`."""
    most = min(most, scores_BM.shape[1])
    kept_BM = _unsuppressed(boxes_BM4, scores_BM, labels_BM, iou, least, most)
    scores_Bn, at_Bn = torch.where(kept_BM, scores_BM, _NONE).topk(most)
    return _rows(boxes_BM4, at_Bn), scores_Bn, labels_BM.gather(1, at_Bn)


@torch.library.custom_op("kora::unsuppressed", mutates_args=())
def _unsuppressed(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, least: float, most: int
) -> Tensor:
    """Which candidates (B, M) have a score above `least`, and are not suppressed by a better one.

    Those that are not among the `most` best of their class may be left out.
    """
    kept_BM = torch.zeros_like(scores, dtype=torch.bool)
    for row, (of_image, score, label) in enumerate(zip(boxes, scores, labels, strict=True)):
        above = torch.where(score > least)[0]
        kept_BM[row, above[batched_nms(of_image[above], score[above], label[above], iou)]] = True
    return kept_BM


@_unsuppressed.register_fake
def _(boxes: Tensor, scores: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def translations(num_labels: int) -> dict[Any, Any]:
    """For `torch.onnx.export`: the suppression as operations of ONNX, for labels below a number."""
    import onnxscript

    op: Any = onnxscript.opset18

    def unsuppressed(
        boxes: Any, scores: Any, labels: Any, iou: float, least: float, most: int
    ) -> Any:
        classes_1C1 = op.Constant(value_ints=list(range(num_labels)))
        classes_1C1 = op.Unsqueeze(classes_1C1, [0, 2])
        of_class_BCM = op.Equal(op.Unsqueeze(labels, [1]), classes_1C1)
        scores_BCM = op.Where(of_class_BCM, op.Unsqueeze(scores, [1]), _NONE)
        found = op.NonMaxSuppression(boxes, scores_BCM, [most], [iou], [least])
        places = op.Gather(found, [0, 2], axis=1)  # of image and candidate
        nothing_BM = op.Less(scores, scores)
        true = op.Expand(op.Constant(value_ints=[1]), op.Slice(op.Shape(places), [0], [1]))
        return op.ScatterND(nothing_BM, places, op.Cast(true, to=9))  # 9: bool

    return {torch.ops.kora.unsuppressed.default: unsuppressed}


def _anchors(head: DetectionHead, levels: list[Tensor]) -> Tensor:
    assert head.size is not None
    detector: Any = head.detector
    make = detector.rpn if isinstance(detector, FasterRCNN) else detector
    one_picture = ImageList(torch.empty(0), [head.size])
    anchors_A4: Tensor = make.anchor_generator(one_picture, levels)[0]
    return anchors_A4


def _of_place(detector: Any) -> list[int]:
    counts: list[int] = detector.anchor_generator.num_anchors_per_location()
    return counts


def _decoded(coder: Any, deltas_BA4: Tensor, anchors_A4: Tensor) -> Tensor:
    anchors_BA4 = anchors_A4.expand(deltas_BA4.shape)
    if not hasattr(coder, "decode_single"):  # that of FCOS
        boxes: Tensor = coder.decode(deltas_BA4, anchors_BA4)
        return boxes
    flat: Tensor = coder.decode_single(deltas_BA4.flatten(0, 1), anchors_BA4.flatten(0, 1))
    return flat.view(deltas_BA4.shape)


def _clipped(boxes: Tensor, head: DetectionHead) -> Tensor:
    assert head.size is not None
    height, width = map(float, head.size)
    return boxes.clamp(min=0).minimum(torch.tensor([width, height, width, height]))


def _shortest(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).amin(dim=-1)


def _rows(boxes_BA4: Tensor, at_BM: Tensor) -> Tensor:
    return boxes_BA4.gather(1, at_BM[..., None].expand(*at_BM.shape, 4))


def _number(value: float) -> Tensor:
    return torch.tensor(float(value), dtype=torch.float64)
