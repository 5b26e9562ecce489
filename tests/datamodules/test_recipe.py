"""Claims about the recipe from a picture to pixels: what it does, and that it does it alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from datamodules import CIFAR, DetectionFolder, ImageFolder, Synthetic, TinyImageNet
from datamodules.recipe import GREY, ImageRecipe, UnreadableImageError, upright_size
from tests.support.picture_factory import bad_files, scene, write_photos

CROP = ImageRecipe("crop", (48, 40))
RECIPES = [ImageRecipe(), CROP, ImageRecipe("stretch", (48, 40))]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.mark.parametrize("recipe", RECIPES, ids=["whole", "crop", "stretch"])
def test_a_path_a_pil_image_an_array_and_a_tensor_give_the_same_pixels(
    recipe: ImageRecipe, photos: list[Path]
) -> None:
    for path in photos:
        pixels = recipe(path)
        assert pixels.dtype == np.uint8
        assert pixels.shape[0] == 3
        whole = np.asarray(recipe.open(path))
        tensor = torch.from_numpy(whole.copy()).permute(2, 0, 1)
        with Image.open(path) as opened:
            others = [recipe(opened), recipe(str(path))]
        others += [recipe(whole), recipe(whole / 255), recipe(tensor), recipe(tensor / 255)]
        assert all(np.array_equal(pixels, other) for other in others), path


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_a_photo_gives_the_picture_as_it_was_seen(
    tmp_path: Path, orientation: int, suffix: str
) -> None:
    seen = scene(1, (30, 50))
    turn_back = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = seen
    for step in turn_back.get(orientation, []):
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{suffix}"
    stored.save(path, exif=exif)
    assert upright_size(path) == (30, 50)
    if suffix in ("png", "tif"):  # without loss
        assert np.array_equal(ImageRecipe()(path), ImageRecipe()(seen))


def test_crop_keeps_proportions_and_stretch_keeps_everything() -> None:
    pixels = np.zeros((20, 60, 3), dtype=np.uint8)
    pixels[:, :20] = 255  # the left third is white
    assert ImageRecipe("crop", (20, 20))(pixels).max() < 50
    stretched = ImageRecipe("stretch", (20, 20))(pixels)
    assert stretched[..., :5].min() > 200
    assert stretched[..., 8:].max() < 50


@pytest.mark.parametrize("size", [(20, 60), (60, 20), (96, 80), (10, 9), (300, 1)])
def test_contain_shows_the_whole_picture_at_the_top_left_and_fills_the_rest(
    size: tuple[int, int],
) -> None:
    photo, recipe = scene(8, size), ImageRecipe("contain", (48, 40))
    high, wide = recipe.fitted_content(size)
    assert recipe.fitted(size) == (48, 40)
    assert high == 48 or wide == 40
    assert high / wide == pytest.approx(size[0] / size[1], rel=0.03) or wide == 1
    pixels = recipe(photo)
    assert pixels.shape == (3, 48, 40)
    content = ImageRecipe("stretch", (high, wide))(photo)
    assert np.array_equal(pixels[:, :high, :wide], content)
    rest = np.concatenate([pixels[:, high:].reshape(3, -1), pixels[:, :, wide:].reshape(3, -1)], 1)
    assert (rest == np.array(GREY)[:, None]).all()


def test_only_contain_shows_less_than_the_whole_of_its_pixels() -> None:
    recipes = [*RECIPES, ImageRecipe("cover", (48, 40))]
    for recipe in recipes:
        assert recipe.fitted_content((33, 97)) == recipe.fitted((33, 97))
    assert ImageRecipe("contain", (48, 40)).fitted_content((33, 97)) == (14, 40)  # 13.6
    assert ImageRecipe("contain", (100, 100)).fitted_content((200, 41)) == (100, 21)  # 20.5


@pytest.mark.parametrize("size", [(60, 100), (100, 60), (48, 40), (300, 41), (20, 21)])
def test_a_crop_is_that_of_pillow_but_for_the_order_of_the_axes(size: tuple[int, int]) -> None:
    photo = scene(2, size)
    by_pillow = np.asarray(ImageOps.fit(photo, (40, 48), Image.Resampling.BICUBIC))
    difference = np.abs(CROP(photo).astype(int) - by_pillow.transpose(2, 0, 1))
    assert difference.mean() < 0.5
    assert size[0] > size[1] or difference.max() == 0  # Pillow 13 orders tall ones otherwise


def test_what_is_transparent_is_white_whatever_colour_lies_hidden_there(tmp_path: Path) -> None:
    drawn = scene(3, (30, 40))
    alpha = Image.new("L", drawn.size, 255)
    alpha.paste(0, (0, 0, 20, 30))
    answers = []
    for hidden in ("black", "red"):
        under = drawn.copy()
        under.paste(hidden, (0, 0, 20, 30))
        under.putalpha(alpha)
        under.save(tmp_path / f"{hidden}.png")
        answers.append(ImageRecipe()(tmp_path / f"{hidden}.png"))
    assert np.array_equal(*answers)
    assert (answers[0][..., :20] == 255).all()
    assert np.array_equal(answers[0][..., 20:], ImageRecipe()(drawn)[..., 20:])
    before = ImageRecipe(transparency="dropped")(tmp_path / "black.png")  # as runs of before
    assert (before[..., :20] == 0).all()


def test_palette_grey_and_true_colour_of_one_transparent_picture_are_alike(tmp_path: Path) -> None:
    palette = scene(4, (30, 40)).convert("P")
    palette.info["transparency"] = palette.getpixel((5, 5))
    palette.save(tmp_path / "palette.png")
    palette.convert("RGBA").save(tmp_path / "true.png")
    palette.save(tmp_path / "palette.gif")
    first = ImageRecipe()(tmp_path / "palette.png")
    assert (first[:, 5, 5] == 255).all()
    assert np.array_equal(first, ImageRecipe()(tmp_path / "true.png"))
    assert np.array_equal(first, ImageRecipe()(tmp_path / "palette.gif"))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_of_an_animation_or_of_pages_the_first_is_taken(tmp_path: Path, suffix: str) -> None:
    frames = [scene(number, (30, 40)).convert("L").convert("RGB") for number in (5, 6)]
    path = tmp_path / f"moving.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as opened:
        assert opened.n_frames == 2
    difference = np.abs(ImageRecipe()(path).astype(int) - ImageRecipe()(frames[0])).mean()
    assert difference < 2  # the palette of a GIF


def test_16_bits_in_three_channels_keep_their_upper_byte(tmp_path: Path) -> None:
    """Pillow's own doing, and right: the range is that of the format."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = b"".join(b"\0" + struct.pack(">6H", *[0x8012, 0x40FF, 0xFF00] * 2) for _ in range(2))
    head = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    png += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "deep.png").write_bytes(png)
    assert ImageRecipe()(tmp_path / "deep.png")[:, 0, 0].tolist() == [0x80, 0x40, 0xFF]


def test_every_bad_file_gives_one_line_that_names_it_and_the_reason(tmp_path: Path) -> None:
    for name, reason in bad_files(tmp_path).items():
        with pytest.raises(UnreadableImageError) as caught:
            CROP(tmp_path / name)
        text = str(caught.value)
        assert text.startswith(f"Cannot read the image {tmp_path / name} (")
        assert reason in text
        assert text.endswith("Replace or remove this file.")
        assert len(text.splitlines()) == 1
    with pytest.raises(UnreadableImageError, match=r"nowhere\.png \(No such file or directory\)"):
        CROP(tmp_path / "nowhere.png")


def test_no_name_of_a_file_looks_like_another_message(tmp_path: Path) -> None:
    (tmp_path / "a\nkora: error: \x1b[2J.png").touch()
    with pytest.raises(UnreadableImageError, match=r"/a\\nkora: error: \\x1b\[2J\.png \(the file"):
        CROP(tmp_path / "a\nkora: error: \x1b[2J.png")


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Image.new("RGB", (0, 5)), r"the PIL image \(it has no pixels: 5 x 0\)"),
        (np.zeros((0, 4, 3), np.uint8), r"array of shape \(0, 4, 3\) .*it has no pixels: 0 x 4"),
        (np.zeros((4, 4), np.uint16), "more than 8 bits a channel"),
        (Image.new("I;16", (4, 4)), "more than 8 bits a channel"),
        (np.zeros((3, 9, 9), np.uint8), r"expected \(H, W\) or \(H, W, C\) with 1, 3 or 4"),
        (torch.zeros(9, 9, 3, dtype=torch.uint8), r"tensor .*expected \(C, H, W\) with 1, 3 or 4"),
        (np.full((4, 4, 3), 1.5), r"floating point from 1.5 to 1.5; expected \[0, 1\]"),
        (np.full((4, 4, 3), np.nan), "floating point from nan"),
        (np.zeros((4, 4), bool), "bool; expected uint8"),
    ],
)
def test_a_bad_picture_in_memory_is_refused_by_the_same_words(
    picture: object, message: str
) -> None:
    with pytest.raises(UnreadableImageError, match=message):
        CROP(picture)


def test_a_picture_so_thin_that_resizing_would_fill_the_memory_is_refused() -> None:
    thin = Image.new("L", (1, 4_000_000))
    with pytest.raises(UnreadableImageError, match=r"4000000 x 1 pixels are too thin"):
        ImageRecipe("crop", (32, 32))(thin)


def test_what_is_no_picture_at_all_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="A picture is a path, a PIL image, an array or a tensor"):
        CROP(5)


def test_without_a_fit_another_size_is_refused(tmp_path: Path) -> None:
    scene(0, (20, 60)).save(tmp_path / "a.png")
    with pytest.raises(UnreadableImageError, match=r"a\.png is 20 x 60 pixels, expected 60 x 20"):
        ImageRecipe(size=(60, 20))(tmp_path / "a.png")
    assert ImageRecipe(size=(20, 60))(tmp_path / "a.png").shape == (3, 20, 60)


def test_every_data_module_says_what_a_photo_must_undergo_to_look_like_its_own() -> None:
    assert TinyImageNet("data").recipe == ImageRecipe("crop", (64, 64))
    assert CIFAR("data", variant=10).recipe == ImageRecipe("crop", (32, 32))
    assert Synthetic(image_size=48).recipe == ImageRecipe("crop", (48, 48))
    assert Synthetic(maps=["depth_m"]).recipe == ImageRecipe()  # a map of the whole picture
    assert Synthetic(maps=["boxes"]).recipe == ImageRecipe("contain", (64, 64))
    assert DetectionFolder("data", image_size=(20, 30)).recipe == ImageRecipe("contain", (20, 30))
    folder = ImageFolder("data", image_size=(20, 30), resize="stretch")
    assert folder.recipe == ImageRecipe("stretch", (20, 30))


def test_an_image_of_the_size_of_the_data_is_left_as_it_is() -> None:
    image = np.asarray(scene(7, (64, 64)))
    for fit in ("crop", "contain"):
        assert np.array_equal(ImageRecipe(fit, (64, 64))(image), image.transpose(2, 0, 1))
