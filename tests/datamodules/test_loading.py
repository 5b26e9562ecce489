"""Claims about decoding, fetching and shuffling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader

from datamodules.loading import ArrayDataset, as_is, decode_image, decode_images
from tests.data_factory import class_image


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def test_an_array_is_fetched_a_batch_at_a_time() -> None:
    class NoLoop(ArrayDataset):
        def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
            raise AssertionError("fetched image by image")

    data = NoLoop({"image": torch.arange(10), "label": torch.arange(10) * 2})
    batches = list(DataLoader(data, batch_size=4, collate_fn=as_is))
    assert [len(batch["image"]) for batch in batches] == [4, 4, 2]
    assert torch.equal(batches[1]["label"], torch.tensor([8, 10, 12, 14]))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_every_8_bit_image_becomes_rgb(tmp_path: Path, mode: str) -> None:
    suffix = "tif" if mode == "CMYK" else "png"
    path = save(tmp_path / f"a.{suffix}", class_image(1, 0, size=(20, 30)), mode)
    pixels = decode_image(path, size=(20, 30), resize=None)
    assert pixels.shape == (20, 30, 3)
    assert pixels.dtype == np.uint8


def test_a_16_bit_image_is_refused_because_conversion_would_clip_it(tmp_path: Path) -> None:
    path = save(tmp_path / "deep.png", np.full((8, 8), 40_000, dtype=np.uint16))
    with pytest.raises(RuntimeError, match=r"deep\.png \(more than 8 bits a channel"):
        decode_image(path, size=(8, 8), resize=None)


def test_crop_keeps_proportions_and_stretch_keeps_everything(tmp_path: Path) -> None:
    pixels = np.zeros((20, 60, 3), dtype=np.uint8)
    pixels[:, :20] = 255  # the left third is white
    path = save(tmp_path / "wide.png", pixels)
    assert decode_image(path, size=(20, 20), resize="crop").max() < 50
    stretched = decode_image(path, size=(20, 20), resize="stretch")
    assert stretched[:, :5].min() > 200
    assert stretched[:, 8:].max() < 50


def test_a_phone_photograph_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: rotate by 90 degrees to show
    path = save(tmp_path / "phone.jpg", np.full((20, 60, 3), 90, dtype=np.uint8), exif=exif)
    with pytest.raises(RuntimeError, match="20 x 60 pixels, expected 60 x 20"):
        decode_image(path, size=(60, 20), resize=None)
    pixels = np.zeros((20, 60, 3), dtype=np.uint8)
    pixels[:, :20] = 255
    path = save(tmp_path / "phone.png", pixels, exif=exif)
    upright = decode_image(path, size=(60, 20), resize="stretch")
    assert upright[:15].min() > 200
    assert upright[25:].max() < 50


@pytest.mark.parametrize("content", [b"", b"no image", "truncated"])
def test_an_unreadable_image_is_named(tmp_path: Path, content: bytes | str) -> None:
    good = [save(tmp_path / f"{i}.jpg", class_image(0, i, size=(32, 32))) for i in range(5)]
    if content == "truncated":
        content = good[3].read_bytes()[:-200]
    assert isinstance(content, bytes)
    good[3].write_bytes(content)
    with pytest.raises(RuntimeError, match=r"Cannot read the image .*3\.jpg .*Replace or remove"):
        decode_images(good, size=(32, 32), resize=None, what="test")


def test_the_error_of_a_loader_process_is_one_line_too(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    try:
        decode_image(tmp_path / "bad.jpg", size=(8, 8), resize=None)
    except RuntimeError:
        handed_on = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(RuntimeError, match=r"^Cannot read the image .*bad\.jpg") as caught:
        handed_on.reraise()
    assert len(str(caught.value).splitlines()) == 1


def test_threads_keep_the_order(tmp_path: Path) -> None:
    expected = [class_image(i, 0, size=(8, 8)) for i in range(40)]
    paths = [save(tmp_path / f"{i}.png", pixels) for i, pixels in enumerate(expected)]
    images = decode_images(paths, size=(8, 8), resize=None, what="test")
    assert images.dtype == torch.uint8
    assert np.array_equal(images.numpy(), np.stack(expected).transpose(0, 3, 1, 2))
