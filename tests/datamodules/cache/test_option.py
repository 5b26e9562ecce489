"""Claims about the option `cache` of the data modules that read image files."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules import ImageDataModule, ImageFolder, Subset, TinyImageNet
from datamodules.cache.images import ImageCache
from datamodules.loading import ReadDataset
from datamodules.recipe import UnreadableImageError
from tests.support.cli import kora, tiny_config, write_config
from tests.support.data_factory import write_class_folders, write_tiny_imagenet_zip
from tests.support.faults import small_disk, truncate

Make = Callable[..., ImageDataModule]


def tiny_imagenet(tmp_path: Path, **options: Any) -> TinyImageNet:
    archive = tmp_path / "small.zip"
    if not archive.exists():
        write_tiny_imagenet_zip(archive)
    options = {"classes": "0:4", "val_images": 8, **options}
    data = TinyImageNet(str(tmp_path / "root"), archive=str(archive), **options)
    data.prepare_data()
    return data


def image_folder(tmp_path: Path, **options: Any) -> ImageFolder:
    if not (tmp_path / "root" / "mine").exists():
        write_class_folders(tmp_path / "root" / "mine")
    options = {"image_size": (24, 32), "num_workers": 0, "val_images": 6, **options}
    return ImageFolder(str(tmp_path / "root" / "mine"), **options)


BOTH = pytest.mark.parametrize("make", [tiny_imagenet, image_folder])


def epoch(data: ImageDataModule) -> dict[str, torch.Tensor]:
    """All batches of every split, one after the other."""
    data.setup()
    loaders: list[Any] = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
    batches = [batch for loader in loaders for batch in loader]
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def caches(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.cache"))


def quiet(run: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning, message=".*cache")
        return run()


@BOTH
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_the_same_to_the_byte_with_and_without(
    tmp_path: Path, make: Make, workers: int
) -> None:
    plain = epoch(make(tmp_path, cache=False, batch_size=7))
    for _ in range(2):  # the second time there is nothing to decode
        data = make(tmp_path, cache=True, batch_size=7, num_workers=workers)
        cached = quiet(lambda data=data: epoch(data))
        assert list(cached) == ["image", "label", "index"]
        assert all(torch.equal(cached[name], plain[name]) for name in plain)
        assert all(cached[name].dtype == plain[name].dtype for name in plain)
    alike = make(tmp_path, cache=False)
    alike.setup()
    assert torch.equal(data.images("val", [3, 1]), alike.images("val", [3, 1]))
    assert data.protocol() == alike.protocol()


def test_it_lies_beside_the_data_and_each_size_has_its_own(tmp_path: Path) -> None:
    tiny_imagenet(tmp_path).setup()
    for size in (8, (8, 12)):
        image_folder(tmp_path, cache=True, image_size=size).setup()
    image_folder(tmp_path, cache=True, image_size=8, resize="stretch").setup("test")
    assert caches(tmp_path / "root") == [
        "mine.test.8x12.crop.cache", "mine.test.8x8.crop.cache", "mine.test.8x8.stretch.cache",
        "mine.train.8x12.crop.cache", "mine.train.8x8.crop.cache",
        "tiny-imagenet-200.train.cache", "tiny-imagenet-200.val.cache",
    ]  # fmt: skip


def test_it_is_the_custom_for_tiny_imagenet_and_a_choice_for_class_folders(tmp_path: Path) -> None:
    image_folder(tmp_path).setup()
    tiny_imagenet(tmp_path, cache=False).setup()
    assert caches(tmp_path / "root") == []
    tiny_imagenet(tmp_path).setup("test")
    assert caches(tmp_path / "root") == ["tiny-imagenet-200.val.cache"]


@BOTH
def test_it_may_lie_in_a_folder_of_ones_choice(tmp_path: Path, make: Make) -> None:
    make(tmp_path, cache=str(tmp_path / "fast" / "disk")).setup()
    assert caches(tmp_path / "root") == []
    assert len(caches(tmp_path / "fast" / "disk")) == 2


def test_a_small_subset_decodes_a_few_and_other_seeds_and_subsets_add_to_the_same_file(
    tmp_path: Path,
) -> None:
    def decoded(**options: Any) -> int:
        data = tiny_imagenet(tmp_path, **options)
        data.setup("fit")
        (dataset, *_) = (one.source for one in data.loader_datasets.values())
        assert isinstance(dataset, ReadDataset)
        assert isinstance(dataset.reader, ImageCache)
        rows = np.load(dataset.reader.folder / "rows.npy")
        return int(rows["ready"].sum())

    some = Subset(per_class=1)
    assert decoded(subset=some, val_images=0, seed=0) == 4
    assert 4 < decoded(subset=some, val_images=0, seed=1) <= 8
    assert decoded(val_images=8) == 40
    assert caches(tmp_path / "root") == ["tiny-imagenet-200.train.cache"]


@BOTH
@pytest.mark.parametrize("fault", ["no folder can be made", "full"])
def test_where_it_cannot_be_written_one_line_says_so_and_the_run_goes_on(
    tmp_path: Path, make: Make, fault: str
) -> None:
    plain = epoch(make(tmp_path, cache=False))
    with small_disk(tmp_path / "disk", size_mib=1) as disk:
        if fault == "full":
            (disk / "other").write_bytes(b"\1" * (2**20 - 2**13))
        else:
            (disk / "sub").write_bytes(b"")
        data = make(tmp_path, cache=str(disk / "sub" if fault != "full" else disk))
        with pytest.warns(
            UserWarning, match=r"^Without a cache the images of .*data\.cache"
        ) as said:
            cached = epoch(data)
    lines = {str(warning.message) for warning in said}
    assert len(lines) == 2  # one for each official part
    assert not any("\n" in line for line in lines)
    assert all(torch.equal(cached[name], plain[name]) for name in plain)


@BOTH
def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path, make: Make) -> None:
    data = make(tmp_path, cache=True)
    images = (path for path in (tmp_path / "root").rglob("*") if path.suffix in (".jpg", ".JPEG"))
    bad = min(images)
    truncate(bad)
    with pytest.raises(UnreadableImageError, match=f"Cannot read the image {bad}"):
        data.setup()


def test_a_damaged_image_that_is_skipped_needs_no_row(tmp_path: Path) -> None:
    image_folder(tmp_path)
    truncate(tmp_path / "root" / "mine" / "train" / "cat" / "0000.jpg")
    data = image_folder(tmp_path, cache=True, on_bad_image="skip", val_images=0)
    with pytest.warns(UserWarning, match="leaves out 1 of 24"):
        batch = next(iter(data.train_dataloader()))
    assert len(batch["image"]) == 23
    assert 0 not in batch["index"]


@BOTH
def test_preparing_fills_it_and_says_where(tmp_path: Path, make: Make) -> None:
    said = make(tmp_path, cache=True).prepare_cache()
    images = 52 if make is tiny_imagenet else 33
    assert said is not None
    assert said.startswith(f"{images} decoded images are in ")
    assert said.endswith(" MiB).")
    assert len(caches(tmp_path / "root")) == 2
    assert all(name in said for name in caches(tmp_path / "root"))
    assert make(tmp_path, cache=False).prepare_cache() is None


def test_kora_data_prepare_makes_it_and_a_plain_word_switches_it_off(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_imagenet_zip(tmp_path / "small.zip")
    config = tiny_config()
    arguments = {"root": "root", "archive": "small.zip", "classes": "0:4", "val_images": 8}
    config["data"] = {"class_path": "datamodules.TinyImageNet", "init_args": arguments}
    write_config(tmp_path / "tiny.yaml", config)
    command = ("data", "prepare", "--config", "tiny.yaml")
    assert "decoded images" not in kora(capfd, *command, "--data.cache", "false").out
    assert caches(tmp_path / "root") == []
    said = kora(capfd, *command).out
    assert "52 decoded images" in said
    kora(capfd, *command, "--data.cache", "fast")
    assert caches(tmp_path / "fast") == caches(tmp_path / "root") != []
