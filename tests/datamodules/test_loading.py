"""Claims about decoding, fetching and shuffling."""

from __future__ import annotations

import atexit
import importlib
import multiprocessing.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Dataset

from datamodules import loading
from datamodules.loading import ArrayDataset, as_is, decode_images, visible_files
from datamodules.recipe import ImageRecipe
from tests.support.data_factory import class_image
from tests.support.forks import forked


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


class FailsInTheMiddle(Dataset[int]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, row: int) -> int:
        if row == 5:
            raise KeyError(row)
        return row


def program_that_fails() -> None:
    """As a program that imports what this file imports; what it does at its end included."""
    atexit._clear()
    atexit.register(multiprocessing.util._exit_function)
    importlib.reload(loading)
    batches = iter(
        DataLoader(FailsInTheMiddle(), num_workers=2, worker_init_fn=loading.begin_worker)
    )
    try:
        list(batches)
    except KeyError:
        print("ends")
    atexit._run_exitfuncs()


def test_a_program_whose_loader_failed_in_a_worker_ends(tmp_path: Path) -> None:
    """Python ends with SIGTERM what is left at the end, and the workers ignore that."""
    with forked(program_that_fails, tmp_path / "said") as program:
        assert program.wait(timeout=60) == 0
    assert (tmp_path / "said").read_text() == "ends\n"


@pytest.mark.parametrize("content", [b"", b"no image", "truncated"])
def test_an_unreadable_image_is_named(tmp_path: Path, content: bytes | str) -> None:
    good = [save(tmp_path / f"{i}.jpg", class_image(0, i, size=(32, 32))) for i in range(5)]
    if content == "truncated":
        content = good[3].read_bytes()[:-200]
    assert isinstance(content, bytes)
    good[3].write_bytes(content)
    with pytest.raises(RuntimeError, match=r"Cannot read the image .*3\.jpg .*Replace or remove"):
        decode_images(good, ImageRecipe(size=(32, 32)), what="test")


def test_the_error_of_a_loader_process_is_one_line_too(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    try:
        ImageRecipe()(tmp_path / "bad.jpg")
    except RuntimeError:
        handed_on = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(RuntimeError, match=r"^Cannot read the image .*bad\.jpg") as caught:
        handed_on.reraise()
    assert len(str(caught.value).splitlines()) == 1


def test_threads_keep_the_order(tmp_path: Path) -> None:
    expected = [class_image(i, 0, size=(8, 8)) for i in range(40)]
    paths = [save(tmp_path / f"{i}.png", pixels) for i, pixels in enumerate(expected)]
    images = decode_images(paths, ImageRecipe(size=(8, 8)), what="test")
    assert images.dtype == torch.uint8
    assert np.array_equal(images.numpy(), np.stack(expected).transpose(0, 3, 1, 2))


def test_folders_that_are_links_are_read_and_circles_end(tmp_path: Path) -> None:
    for name in ("photos/cat/1.jpg", "disk/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "photos/cat/more").symlink_to(tmp_path / "disk")
    (tmp_path / "photos/cat/all").symlink_to(tmp_path / "photos")
    found = [path.relative_to(tmp_path).as_posix() for path in visible_files(tmp_path / "photos")]
    assert found == ["photos/cat/1.jpg", "photos/cat/more/2.jpg"]
