"""The loss of segmentation, in float32 whatever the precision of the model.

Shapes: B images, K classes, H and W pixels, P pixels that count
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.segmentation.masks import IGNORED

__all__ = ["SegmentationLoss", "dice_loss", "lovasz_loss"]


class SegmentationLoss(nn.Module):
    """Cross-entropy, Dice and Lovász-softmax, added with their weights.

    Dice and Lovász follow the overlap of regions, so small classes weigh as much as large ones. Use
    them beside cross-entropy. If no pixel counts, the loss and its gradient are zero.

    Args:
        cross_entropy: Weight of the mean cross-entropy over pixels.
        dice: Weight of the Dice loss (Milletari et al. 2016, arXiv:1606.04797), over the batch.
        lovasz: Weight of Lovász-softmax (Berman et al. 2018, arXiv:1705.08790), over the batch.
        label_smoothing: In [0, 1), of the cross-entropy.

    Raises:
        ValueError: For a weight below 0, none above 0, or a label_smoothing outside [0, 1).
    """

    def __init__(
        self,
        *,
        cross_entropy: float = 1.0,
        dice: float = 0.0,
        lovasz: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        weights = {"cross_entropy": cross_entropy, "dice": dice, "lovasz": lovasz}
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"SegmentationLoss: {name}={weight}, expected 0 or more.")
        if not any(weights.values()):
            raise ValueError("SegmentationLoss: all weights are 0. Set one above 0.")
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"SegmentationLoss: label_smoothing={label_smoothing}, expected a share in [0, 1)."
            )
        self.cross_entropy = cross_entropy
        self.dice = dice
        self.lovasz = lovasz
        self.label_smoothing = label_smoothing

    def forward(self, logits_BKHW: Tensor, mask_BHW: Tensor) -> Tensor:
        """The loss () of logits and a mask of classes, in which 255 does not count."""
        with torch.autocast(logits_BKHW.device.type, enabled=False):
            logits_BKHW, target_BHW = logits_BKHW.float(), mask_BHW.long()
            counted_BHW = target_BHW != IGNORED
            loss = logits_BKHW.sum() * 0.0
            if not counted_BHW.any():
                return loss
            if self.cross_entropy:
                loss = loss + self.cross_entropy * F.cross_entropy(
                    logits_BKHW,
                    target_BHW,
                    ignore_index=IGNORED,
                    label_smoothing=self.label_smoothing,
                )
            if self.dice or self.lovasz:
                share_PK = logits_BKHW.softmax(dim=1).movedim(1, -1)[counted_BHW]
                target_P = target_BHW[counted_BHW]
                if self.dice:
                    loss = loss + self.dice * dice_loss(share_PK, target_P)
                if self.lovasz:
                    loss = loss + self.lovasz * lovasz_loss(share_PK, target_P)
            return loss


def dice_loss(share_PK: Tensor, target_P: Tensor) -> Tensor:
    """1 - 2 |overlap| / (|prediction| + |truth|), the mean over the classes that occur."""
    truth_PK = F.one_hot(target_P, share_PK.shape[1]).to(share_PK.dtype)
    overlap_K = (share_PK * truth_PK).sum(dim=0)
    both_K = share_PK.sum(dim=0) + truth_PK.sum(dim=0)
    occurs_K = truth_PK.any(dim=0)
    return (1 - 2 * overlap_K / both_K)[occurs_K].mean()


def lovasz_loss(share_PK: Tensor, target_P: Tensor) -> Tensor:
    """The convex extension of 1 - IoU to probabilities, the mean over the classes that occur."""
    losses = []
    for number in torch.unique(target_P).tolist():
        truth_P = (target_P == number).to(share_PK.dtype)
        error_P, order_P = (truth_P - share_PK[:, number]).abs().sort(descending=True)
        losses.append(error_P @ _lovasz_gradient(truth_P[order_P]))
    return torch.stack(losses).mean()


def _lovasz_gradient(truth_P: Tensor) -> Tensor:
    """How much 1 - IoU grows with each further error, in the order of the errors."""
    total = truth_P.sum()
    lost_P = 1 - (total - truth_P.cumsum(0)) / (total + (1 - truth_P).cumsum(0))
    return torch.cat([lost_P[:1], lost_P[1:] - lost_P[:-1]])
