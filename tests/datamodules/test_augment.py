"""Claims about augmentation on the device."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from datamodules.augment import augment_batch, check_augment


@pytest.fixture
def images() -> torch.Tensor:
    """uint8 (64, 3, 32, 24)"""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (64, 3, 32, 24), dtype=torch.uint8, generator=generator)


def test_none_returns_the_images_themselves(images: torch.Tensor) -> None:
    assert augment_batch(images, augment="none") is images


def test_flip_mirrors_about_half_and_changes_no_value(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    moved = augment_batch(images, augment="flip")
    same = (moved == images).flatten(1).all(1)
    mirrored = (moved == images.flip(-1)).flatten(1).all(1)
    assert moved.dtype == torch.uint8
    assert (same | mirrored).all()
    assert 16 < mirrored.sum() < 48


def test_flip_crop_moves_each_image_on_its_own_and_changes_no_value(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    moved = augment_batch(images, augment="flip_crop")
    assert moved.shape == images.shape
    assert moved.dtype == torch.uint8
    offsets = set()
    for before, after in zip(images, moved, strict=True):
        found = []
        for mirrored in (False, True):
            source = before.flip(-1) if mirrored else before
            padded = F.pad(source[None].float(), (3, 3, 4, 4), mode="reflect")[0].byte()
            windows = padded.unfold(1, 32, 1).unfold(2, 24, 1)  # (3, 9, 7, 32, 24)
            match = (windows == after[:, None, None]).flatten(3).all(3).all(0)
            found += [(mirrored, *place) for place in match.nonzero().tolist()]
        assert found, "an image is not a shifted copy of its original"
        offsets.add(found[0])
    assert len(offsets) > 20


def test_an_unknown_augmentation_is_named_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'mixup'; use one of none, flip, flip_crop"):
        check_augment("mixup")
