"""Claims about the loss of segmentation: each term by its definition, and what is ignored."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kora.losses import SegmentationLoss
from kora.losses.segmentation import dice_loss, lovasz_loss

K = 4


def case() -> tuple[Tensor, Tensor]:
    """Logits (2, K, 6, 8) and a mask; class 3 does not occur."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, K, 6, 8, generator=generator)
    return logits, torch.randint(0, 3, (2, 6, 8), generator=generator).byte()


def crisp() -> tuple[Tensor, Tensor, list[float]]:
    """Probabilities of 0 and 1, a truth, and the IoU of each class that occurs."""
    logits, mask = case()
    guess, true = logits.argmax(1).flatten(), mask.flatten().long()
    iou = [
        float(((guess == k) & (true == k)).sum() / ((guess == k) | (true == k)).sum())
        for k in range(3)
    ]
    return F.one_hot(guess, K).float(), true, iou


def test_lovasz_of_a_decided_prediction_is_one_minus_iou() -> None:
    share, true, iou = crisp()
    expected = 1 - sum(iou) / len(iou)  # Berman et al. 2018, equation 9: it extends 1 - IoU
    assert float(lovasz_loss(share, true)) == pytest.approx(expected, abs=1e-6)


def test_dice_of_a_decided_prediction_follows_from_iou() -> None:
    share, true, iou = crisp()
    expected = 1 - sum(2 * each / (1 + each) for each in iou) / len(iou)
    assert float(dice_loss(share, true)) == pytest.approx(expected, abs=1e-6)


def test_the_terms_are_added_with_their_weights() -> None:
    logits, mask = case()
    share = logits.softmax(1).movedim(1, -1).reshape(-1, K)
    true = mask.flatten().long()
    expected = (
        2 * F.cross_entropy(logits, mask.long())
        + 0.5 * dice_loss(share, true)
        + 3 * lovasz_loss(share, true)
    )
    found = SegmentationLoss(cross_entropy=2, dice=0.5, lovasz=3)(logits, mask)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("term", ["cross_entropy", "dice", "lovasz"])
def test_pixels_that_are_ignored_change_nothing(term: str) -> None:
    loss = SegmentationLoss(**{"cross_entropy": 0.0, term: 1.0})
    logits, mask = case()
    mask[:, :2] = 255
    spoilt = logits.clone()
    spoilt[:, :, :2] = 50 * torch.randn(spoilt[:, :, :2].shape)
    assert float(loss(logits, mask)) == pytest.approx(float(loss(spoilt, mask)), rel=1e-5)
    assert float(loss(logits, mask)) != pytest.approx(float(loss(logits, case()[1])), rel=1e-3)


@pytest.mark.parametrize("term", ["cross_entropy", "dice", "lovasz"])
def test_without_a_pixel_that_counts_loss_and_gradient_are_zero(term: str) -> None:
    logits, mask = case()
    logits.requires_grad_()
    loss = SegmentationLoss(**{"cross_entropy": 0.0, term: 1.0})(logits, mask.fill_(255))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("term", ["cross_entropy", "dice", "lovasz"])
def test_half_precision_gives_a_float32_loss(term: str) -> None:
    logits, mask = case()
    loss = SegmentationLoss(**{"cross_entropy": 0.0, term: 1.0})
    found = loss(logits.bfloat16(), mask)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(loss(logits, mask)), rel=0.02)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dice": -1.0}, "dice=-1.0, expected 0 or more"),
        ({"cross_entropy": 0.0}, "all weights are 0"),
        ({"label_smoothing": 1.0}, r"in \[0, 1\)"),
    ],
)
def test_weights_that_mean_nothing_are_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SegmentationLoss(**options)
