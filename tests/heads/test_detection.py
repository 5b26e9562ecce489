"""Claims about all detection heads alike, and about each of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from kora.backbone.vit import Backbone, Features
from kora.heads import DetectionHead, FasterRCNNHead, FCOSHead, RetinaNetHead
from kora.metrics.detection_protocol import DetectionProtocol

DINO = "vit_small_patch14_dinov2"
KINDS = [FCOSHead, RetinaNetHead, FasterRCNNHead]
every_kind = pytest.mark.parametrize("kind", KINDS)


def made(kind: Any, backbone: Backbone, score_threshold: float = 0.05, **options: Any) -> Any:
    torch.manual_seed(0)
    head: DetectionHead = kind(channels=32, **options)
    head.build(backbone, 2, DetectionProtocol(score_threshold=score_threshold))
    backbone.levels = head.blocks(backbone.depth)
    return head


def squares(count: int, size: int = 32) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Grey images with a red and a blue rectangle each, the classes 0 and 1."""
    draws = torch.Generator().manual_seed(0)
    images = torch.full((count, 3, size, size), 128, dtype=torch.uint8)
    truths = []
    for image in images:
        boxes = []
        for channel in (0, 2):
            wide, high = torch.randint(8, size // 2, (2,), generator=draws).tolist()
            x = int(torch.randint(0, size - wide, (), generator=draws))
            y = int(torch.randint(0, size - high, (), generator=draws))
            image[:, y : y + high, x : x + wide] = 0
            image[channel, y : y + high, x : x + wide] = 255
            boxes.append([x, y, x + wide, y + high])
        truths.append({"boxes": torch.tensor(boxes).float(), "labels": torch.tensor([0, 1])})
    return images, truths


@pytest.mark.parametrize(("kind", "steps"), [(FCOSHead, 90), (RetinaNetHead, 60)])
def test_it_finds_what_it_was_trained_on(kind: Any, steps: int) -> None:
    backbone = Backbone("vit_nano", image_size=32)
    head, (images, truths) = made(kind, backbone), squares(12)
    optimizer = torch.optim.AdamW(head.parameters(), lr=2e-3)
    with torch.no_grad():
        features = backbone(images)
    for _ in range(steps):
        loss = torch.stack(list(head.losses(head(features), truths).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    head.eval()
    with torch.no_grad():
        found = head.detections(head(features))
    overlaps = [
        box_iou(one["boxes"][one["labels"] == label][:1], truth["boxes"][label : label + 1])
        for one, truth in zip(found, truths, strict=True)
        for label in range(2)
    ]
    # In most images, the box of highest score of each class. Some rectangles hide others.
    assert sum(float(iou.max()) > 0.5 for iou in overlaps if iou.numel()) >= 0.8 * len(overlaps)


@every_kind
def test_the_gradient_reaches_every_parameter(kind: Any) -> None:
    backbone = Backbone("vit_nano", image_size=(32, 48))
    head, (images, truths) = made(kind, backbone), squares(1)
    losses = head.losses(head(backbone(images)), truths)
    torch.stack(list(losses.values())).sum().backward()
    for name, one in head.named_parameters():
        assert one.grad is not None, name
        assert one.grad.any(), name


@every_kind
def test_an_image_without_objects_trains_and_has_finite_losses(kind: Any) -> None:
    backbone = Backbone("vit_nano", image_size=32)
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    head, (images, truths) = made(kind, backbone), squares(1)
    losses = head.losses(head(backbone(images.expand(2, -1, -1, -1))), [empty, truths[0]])
    assert all(loss.isfinite() for loss in losses.values())


@every_kind
def test_classes_begin_at_0_and_boxes_lie_in_the_image(kind: Any) -> None:
    backbone = Backbone("vit_nano", image_size=(32, 48))
    head = made(kind, backbone, score_threshold=0.0).eval()
    with torch.no_grad():
        (found,) = head.detections(head(backbone(squares(1, size=48)[0])))
    assert found["labels"].unique().tolist() == [0, 1]
    assert found["boxes"].min() >= 0
    assert (found["boxes"].amax(dim=0) <= torch.tensor([48.0, 32, 48, 32])).all()
    assert (found["scores"].diff() <= 0).all()


def test_places_are_the_centres_of_the_patches_where_strides_are_no_whole_numbers() -> None:
    """torchvision's own anchors take whole strides: 3 for the 3.5 pixels of four times 14."""
    backbone = Backbone(DINO, weights="random", image_size=(70, 84))
    head = made(FCOSHead, backbone, scales=(4.0, 1.0, 0.5))
    levels = head(backbone(torch.zeros(1, 3, 70, 84)))
    assert [level.shape[-2:] for level in levels] == [(20, 24), (5, 6), (3, 3)]
    pictures = head._pictures(levels)
    sizes = head.detector.transform(pictures, None)[0]
    (anchors,) = head.detector.anchor_generator(sizes, levels)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    finest, patches, coarsest = centres.split([480, 30, 9])
    assert finest[0].tolist() == [1.75, 1.75]
    assert finest[-1].tolist() == [84 - 1.75, 70 - 1.75]
    assert patches[0].tolist() == [7, 7]
    assert patches[-1].tolist() == [77, 63]
    assert coarsest[1].tolist() == [42, 14]


def test_boxes_are_pooled_at_the_true_strides() -> None:
    """torchvision would round 3.5, 7, 14 and 28 pixels to powers of two."""
    backbone = Backbone(DINO, weights="random", image_size=70)
    pool = made(FasterRCNNHead, backbone).detector.roi_heads.box_roi_pool
    assert pool.scales == pytest.approx([1 / 3.5, 1 / 7, 1 / 14, 1 / 28])


def test_under_autocast_losses_are_close_to_those_of_full_precision() -> None:
    backbone = Backbone("vit_nano", image_size=32)
    head, (images, truths) = made(FCOSHead, backbone), squares(4)
    features: Features = backbone(images)
    exact = head.losses(head(features), truths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = head.losses(head(features), truths)
    for name, loss in exact.items():
        assert rounded[name].dtype == torch.float32
        torch.testing.assert_close(rounded[name], loss, rtol=0.02, atol=0.01)


@every_kind
def test_settings_out_of_range_are_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match="channels=48, expected a multiple of 32"):
        kind(channels=48)
    for scales in ((), (1.0, 2.0), (3.0,), (2.0, 2.0)):
        with pytest.raises(ValueError, match=r"expected some of 4, 2, 1 and 0\.5, descending"):
            kind(scales=scales)
