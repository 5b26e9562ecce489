"""Claims about augmentation on the device."""

from __future__ import annotations

import colorsys
from typing import get_args

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv

from datamodules.augment import Augment, augment_batch, check_augment, recolour
from datamodules.recipe import GREY, ImageRecipe

HEIGHT, WIDTH = 32, 24
MOVING = ("flip", "flip_crop", "flip_crop_color")


@pytest.fixture
def images() -> torch.Tensor:
    """uint8 (64, 3, 32, 24)"""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (64, 3, 32, 24), dtype=torch.uint8, generator=generator)


def augmented(images: torch.Tensor, augment: Augment) -> torch.Tensor:
    return augment_batch({"image": images}, augment=augment)["image"]


def coordinates(size: int) -> dict[str, torch.Tensor]:
    """A batch in which every entry says of each pixel which image, row and column it is."""
    image, row, column = torch.meshgrid(
        torch.arange(size), torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij"
    )
    number = (image * HEIGHT + row) * WIDTH + column + 1
    return {
        "image": torch.stack((image, row, column), dim=1).to(torch.uint8),
        "depth_m": number / 7,  # float32 that no rounding to a coarser type survives
        "mask": (row + 1).to(torch.uint8),
        "normal": torch.stack((row + 1, column + 1), dim=1).to(torch.float64),
        "label": torch.arange(size),
        "index": torch.arange(size) + 1000,
    }


def test_none_returns_the_images_themselves(images: torch.Tensor) -> None:
    assert augmented(images, "none") is images


def test_flip_mirrors_about_half_and_changes_no_value(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    moved = augmented(images, "flip")
    same = (moved == images).flatten(1).all(1)
    mirrored = (moved == images.flip(-1)).flatten(1).all(1)
    assert moved.dtype == torch.uint8
    assert (same | mirrored).all()
    assert 16 < mirrored.sum() < 48


def test_flip_crop_moves_each_image_on_its_own_and_changes_no_value(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    moved = augmented(images, "flip_crop")
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


@pytest.mark.parametrize("augment", ["flip", "flip_crop"])
def test_maps_move_with_their_image_to_the_bit(augment: Augment) -> None:
    torch.manual_seed(0)
    batch = coordinates(48)
    moved = augment_batch(batch, augment=augment)
    image, row, column = moved["image"].long().unbind(1)
    inside = moved["depth_m"] > 0
    for name in ("depth_m", "mask", "normal"):
        value, original = moved[name], batch[name]
        assert value.dtype == original.dtype
        assert value.shape == original.shape
        channels_last = original.movedim(1, -1) if original.ndim == 4 else original
        expected = channels_last[image, row, column]
        got = value.movedim(1, -1) if value.ndim == 4 else value
        assert torch.equal(got[inside], expected[inside]), name
        outside = 255 if name == "mask" else 0
        assert (got[~inside] == outside).all(), name
    assert torch.equal(moved["label"], batch["label"])
    assert torch.equal(moved["index"], batch["index"])
    assert inside.all() == (augment == "flip")


def ramps(images: int, height: int = 60, width: int = 80) -> dict[str, torch.Tensor]:
    """Images whose red is the column and green the row, and a mask of four quarters."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([columns, rows, rows * 0]).byte().expand(images, -1, -1, -1)
    mask = ((rows >= height // 2) * 2 + (columns >= width // 2)).byte().expand(images, -1, -1)
    return {"image": image.clone(), "mask": mask.clone(), "index": torch.arange(images)}


def test_a_scaled_crop_shows_the_same_place_in_image_and_mask() -> None:
    torch.manual_seed(0)
    moved = augment_batch(ramps(64), augment="flip_resize_crop", crop=(48, 56))
    assert moved["image"].shape == (64, 3, 48, 56)
    assert moved["mask"].shape == (64, 48, 56)
    inside = moved["mask"] != 255
    column, row = moved["image"][:, 0].float(), moved["image"][:, 1].float()
    quarter = (row >= 29.5).int() * 2 + (column >= 39.5).int()
    clear = inside & ((row - 29.5).abs() > 2) & ((column - 39.5).abs() > 2)
    assert torch.equal(quarter[clear], moved["mask"][clear].int())
    assert 0.01 < (~inside).float().mean() < 0.5, "images below the crop are padded"
    wide = (moved["image"][:, 0, 24].float().diff(dim=-1).abs().median(dim=-1)).values
    assert {0, 1, 2} == set(wide.round().int().tolist()), "0.5 to 2 columns a pixel"


def test_a_scaled_crop_leaves_the_padding_of_a_batch_out() -> None:
    torch.manual_seed(0)
    batch = ramps(16)
    batch["image"][:, :, 30:] = 255
    batch["mask"][:, 30:] = 255
    batch["size"] = torch.tensor([[30, 80]]).expand(16, -1)
    moved = augment_batch(batch, augment="flip_resize_crop", crop=(30, 40))
    assert "size" not in moved
    assert moved["image"][:, 1].amax() <= 116  # the grey of what lies outside
    shown = moved["mask"] != 255
    assert moved["image"][:, 1][shown].amax() < 30


def test_a_depth_in_metres_is_not_scaled() -> None:
    with pytest.raises(ValueError, match="no longer fit what is seen"):
        augment_batch(coordinates(2), augment="flip_resize_crop")


def test_beyond_the_frame_a_map_is_0_exactly_where_the_image_is_reflected() -> None:
    torch.manual_seed(1)
    moved = augment_batch(coordinates(32), augment="flip_crop")
    for image, depth in zip(moved["image"].long(), moved["depth_m"], strict=True):
        # A row or column seen twice is a reflection; the copy that holds no depth is outside.
        rows, columns = image[1][:, 0], image[2][0]
        for places, holds in ((rows, depth.any(1)), (columns, depth.any(0))):
            assert len(set(places[holds].tolist())) == holds.sum()
            outside = set(places[~holds].tolist())
            assert outside <= set(places[holds].tolist())
            run = holds.nonzero().flatten()
            assert run[-1] - run[0] + 1 == len(run), "what is measured is one window"


def test_colour_changes_the_image_alone_and_each_by_its_own_draw() -> None:
    grey = {"image": torch.full((16, 3, HEIGHT, WIDTH), 120, dtype=torch.uint8)}
    torch.manual_seed(0)
    moved = augment_batch({**coordinates(16), **grey}, augment="flip_crop_color")
    torch.manual_seed(0)
    plain = augment_batch({**coordinates(16), **grey}, augment="flip_crop")
    for name in ("depth_m", "mask", "normal"):
        assert torch.equal(moved[name], plain[name])
    levels = moved["image"].flatten(1).float()
    assert (levels.amax(1) - levels.amin(1) <= 1).all(), "grey stays grey"
    assert len(set(levels[:, 0].tolist())) > 8
    assert 90 <= levels.min() < levels.max() <= 150


@pytest.mark.parametrize("augment", MOVING)
def test_a_seed_determines_everything(images: torch.Tensor, augment: Augment) -> None:
    made = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        made.append(augmented(images, augment))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


@pytest.mark.parametrize("augment", MOVING)
def test_the_batch_itself_is_left_alone(augment: Augment) -> None:
    torch.manual_seed(0)
    batch = coordinates(8)
    augment_batch(batch, augment=augment)
    for name, value in coordinates(8).items():
        assert torch.equal(batch[name], value)


@pytest.mark.parametrize("augment", get_args(Augment))
@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 3, 1, 1), (2, 3, 5, 7)])
def test_no_image_and_tiny_images_keep_their_shape(
    augment: Augment, shape: tuple[int, ...]
) -> None:
    images = torch.zeros(shape, dtype=torch.uint8)
    batch = {"image": images, "mask": torch.ones(shape[0], *shape[2:], dtype=torch.uint8)}
    moved = augment_batch(batch, augment=augment)
    assert moved["image"].shape == shape
    assert moved["mask"].shape == (shape[0], *shape[2:])
    if "resize" not in augment:
        assert torch.equal(moved["mask"], batch["mask"])  # below 8 pixels nothing is shifted


def boxed(images: int, *, own: tuple[int, int] | None = None) -> dict[str, torch.Tensor]:
    """Black images of 48 x 64 pixels, of each of which two boxes are red and green."""
    generator = torch.Generator().manual_seed(0)
    high, wide = (48, 64) if own is None else ImageRecipe("contain", (48, 64)).fitted_content(own)
    image = torch.zeros(images, 3, 48, 64, dtype=torch.uint8)
    image += torch.tensor(GREY, dtype=torch.uint8).view(3, 1, 1)
    image[:, :, :high, :wide] = 0
    boxes = torch.zeros(images, 3, 4)
    for row in range(images):
        for place in range(2):
            x, y = (int(torch.randint(0, n - 12, (), generator=generator)) for n in (wide, high))
            image[row, :2, y : y + 12, x : x + 12] = 0
            image[row, place, y : y + 12, x : x + 12] = 250
            boxes[row, place] = torch.tensor([x, y, x + 12, y + 12])
    batch = {"image": image, "boxes": boxes, "index": torch.arange(images)}
    batch["box_label"] = torch.tensor([0, 1, -1]).expand(images, -1).clone()
    batch["box_crowd"] = torch.tensor([False, True, False]).expand(images, -1).clone()
    if own is not None:
        shown = ImageRecipe("contain", (48, 64)).fitted_content(own)
        batch["size"] = torch.tensor(shown).expand(images, -1)
    return batch


@pytest.mark.parametrize("own", [None, (480, 320), (30, 90)])
@pytest.mark.parametrize("augment", ["flip", "flip_resize_crop"])
def test_boxes_stay_on_their_objects(augment: Augment, own: tuple[int, int] | None) -> None:
    torch.manual_seed(0)
    batch = boxed(128, own=own)
    moved = augment_batch(batch, augment=augment)
    found = 0
    for row in range(128):
        for place, (x1, y1, x2, y2) in enumerate(moved["boxes"][row].tolist()):
            if moved["box_label"][row, place] < 0:
                assert (x1, y1, x2, y2) == (0, 0, 0, 0)
                assert not moved["box_crowd"][row, place]
                continue
            assert moved["box_label"][row, place] == place
            assert moved["box_crowd"][row, place] == (place == 1)
            assert 0 <= x1 < x2 <= 64
            assert 0 <= y1 < y2 <= 48
            pixels = moved["image"][row].long()
            coloured = (pixels[place] > 150) & (pixels[1 - place] < 60) & (pixels[2] < 60)
            rows, columns = torch.nonzero(coloured, as_tuple=True)
            other = batch["boxes"][row, 1]
            first = batch["boxes"][row, 0]
            apart = (first[:2] - other[:2]).abs().max() >= 12
            if place == 1 or apart:  # the second is drawn over the first
                ends = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
                assert [x1, y1, x2, y2] == pytest.approx([float(e) for e in ends], abs=1.5)
                found += 1
    assert found > 100


def test_a_mirrored_image_is_that_of_the_mirrored_picture_with_its_filling() -> None:
    picture = torch.randint(0, 256, (3, 50, 30), dtype=torch.uint8)
    recipe = ImageRecipe("contain", (40, 56))
    image = torch.from_numpy(recipe(picture))
    batch = {
        "image": image[None],
        "boxes": torch.tensor([[[2.0, 5, 10, 20], [0, 0, 0, 0]]]),
        "box_label": torch.tensor([[4, -1]]),
        "size": torch.tensor([[40, 24]]),
    }
    moved = augment_batch(batch, augment="flip", draws_BK=torch.zeros(1, 7))
    expected = torch.from_numpy(recipe(picture.flip(-1)))
    assert (moved["image"][0].int() - expected.int()).abs().max() <= 1
    assert recipe.fitted_content((50, 30)) == (40, 24)
    assert moved["boxes"].tolist() == [[[14, 5, 22, 20], [0, 0, 0, 0]]]
    assert torch.equal(moved["size"], batch["size"])


def test_a_box_of_which_less_than_a_quarter_remains_is_dropped() -> None:
    # At scale 2, a place of 0 shows the upper left quarter: 24 x 32 of 48 x 64 pixels.
    boxes = [[24.0, 0, 56, 10], [25.0, 0, 57, 10], [0.0, 0, 64, 48], [40.0, 30, 50, 40]]
    batch = {
        "image": torch.zeros(1, 3, 48, 64, dtype=torch.uint8),
        "boxes": torch.tensor([boxes]),
        "box_label": torch.tensor([[0, 1, 2, 3]]),
    }
    draws = torch.tensor([[0.9, 0, 0, 0, 0, 0, 0, 1]])
    moved = augment_batch(batch, augment="flip_resize_crop", draws_BK=draws)
    assert moved["box_label"].tolist() == [[0, -1, 2, -1]]
    assert moved["boxes"][0].tolist() == [[48, 0, 64, 20], [0] * 4, [0, 0, 64, 48], [0] * 4]


def test_a_window_shows_a_box_if_the_image_has_one() -> None:
    torch.manual_seed(0)
    batch = boxed(256)
    batch["box_label"][:, 1] = -1  # one small object an image
    batch["box_label"][0] = -1
    moved = augment_batch(batch, augment="flip_resize_crop")
    shows = (moved["box_label"] >= 0).any(1)
    assert not shows[0]
    assert shows[1:].all()
    assert torch.equal(batch["boxes"], boxed(256)["boxes"]), "the batch itself is left alone"


@pytest.mark.parametrize("augment", ["flip_crop", "flip_crop_color"])
def test_boxes_are_not_reflected(augment: Augment) -> None:
    with pytest.raises(ValueError, match=r"reflects images at the border.*Use flip, flip_resize"):
        augment_batch(boxed(2), augment=augment)


FACTORS = (0.8, 1.0, 1.15)
ORACLES = {
    "brightness": tv.adjust_brightness,
    "contrast": tv.adjust_contrast,
    "saturation": tv.adjust_saturation,
}


@pytest.mark.parametrize("kind", ORACLES)
def test_each_factor_does_what_torchvision_does(images: torch.Tensor, kind: str) -> None:
    some = (images[:3] // 2) + 50  # nothing is clamped on the way
    factors = dict.fromkeys(ORACLES, torch.ones(3)) | {kind: torch.tensor(FACTORS)}
    changed = recolour(
        some, factors["brightness"], factors["contrast"], factors["saturation"], torch.zeros(3)
    )
    for image, after, factor in zip(some, changed, FACTORS, strict=True):
        expected = ORACLES[kind](image.float() / 255, factor) * 255
        assert (after.float() - expected).abs().max() <= 0.75  # half a level, and rounding of luma


def test_hue_turns_by_the_angle_and_keeps_the_luma() -> None:
    red = torch.tensor([150, 90, 90], dtype=torch.uint8).view(1, 3, 1, 1)
    one = torch.ones(1)
    changed = recolour(red, one, one, one, torch.full((1,), 0.03)).flatten().tolist()
    assert changed != [150, 90, 90]
    luma = [sum(w * v for w, v in zip((0.299, 0.587, 0.114), c, strict=True))
            for c in ([150, 90, 90], changed)]  # fmt: skip
    assert luma[0] == pytest.approx(luma[1], abs=1)
    hue, _, _ = colorsys.rgb_to_hsv(*changed)
    assert min(hue, 1 - hue) == pytest.approx(0.03, abs=0.02)


@pytest.mark.parametrize(
    "shape", [(4, HEIGHT, WIDTH + 1), (4, WIDTH, HEIGHT), (3, HEIGHT, WIDTH), (4, 2)]
)
def test_a_map_of_another_size_is_named_with_both_shapes(shape: tuple[int, ...]) -> None:
    batch = {**coordinates(4), "depth_m": torch.ones(shape)}
    with pytest.raises(ValueError, match=r"depth_m has the shape \(\d.*images \(4, 3, 32, 24\)"):
        augment_batch(batch, augment="flip")


def test_an_unknown_augmentation_is_named_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'mixup'; use one of none, flip, flip_crop"):
        check_augment("mixup")
