"""Claims about class folders: anyone's own images, and real photographs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules import ImageFolder, Subset
from tests.support.data_factory import class_image, write_class_folders, write_zip


def make(tmp_path: Path, *, image_size: Any = (24, 32), **options: Any) -> ImageFolder:
    root = tmp_path / "mine"
    if not root.exists():
        write_class_folders(root)
    return ImageFolder(str(root), image_size=image_size, **{"num_workers": 0, **options})


def test_images_of_mixed_sizes_and_formats_make_one_batch(tmp_path: Path) -> None:
    data = make(tmp_path, val_fraction=0)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert batch["image"].shape == (24, 3, 24, 32)
    assert {name: str(value.dtype) for name, value in batch.items()} == {
        "image": "torch.uint8",
        "label": "torch.int64",
        "index": "torch.int64",
    }
    assert batch["label"].tolist() == [index // 8 for index in batch["index"].tolist()]
    colours = [class_image(k, 0, size=(40, 40)).mean((0, 1)) for k in range(3)]
    for image, label in zip(batch["image"].numpy(), batch["label"].tolist(), strict=True):
        distances = [np.abs(colour - image.mean((1, 2))).sum() for colour in colours]
        assert np.argmin(distances) == label


def test_workers_deliver_the_same_images(tmp_path: Path) -> None:
    alone = next(iter(make(tmp_path).test_dataloader()))
    worked = next(iter(make(tmp_path, num_workers=1).test_dataloader()))
    assert all((alone[name] == worked[name]).all() for name in alone)


def test_pictures_equal_the_batch(tmp_path: Path) -> None:
    data = make(tmp_path)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    assert (data.images("test", [4, 1]) == batch["image"][[4, 1]]).all()


def test_classes_are_known_before_setup_and_sorted(tmp_path: Path) -> None:
    data = make(tmp_path, image_size=16)
    assert data.num_classes == 3
    assert data.class_names == ["cat", "dog", "owl"]
    assert data.image_size == (16, 16)


def test_folders_may_have_other_names_and_depths_and_hidden_files_do_not_count(
    tmp_path: Path,
) -> None:
    root = write_class_folders(tmp_path / "mine")
    (root / "train").rename(root / "learn")
    (root / "learn" / "cat" / "2024").mkdir()
    (root / "learn" / "cat" / "0000.jpg").rename(root / "learn" / "cat" / "2024" / "z.jpg")
    (root / "learn" / ".cache").mkdir()
    (root / "learn" / "cat" / "._0001.jpg").write_bytes(b"")
    (root / "learn" / "cat" / "notes.txt").write_text("no image")
    data = make(tmp_path, train_dir="learn", val_fraction=0)
    data.setup_splits()
    assert np.bincount(data.labels("train")).tolist() == [8, 8, 8]
    assert data.protocol()["official_split"] == {"train": "learn", "val": "learn", "test": "test"}


def test_an_archive_is_extracted_when_the_folder_is_missing(tmp_path: Path) -> None:
    made = write_class_folders(tmp_path / "made")
    members = {
        f"top/{path.relative_to(made)}": path.read_bytes()
        for path in made.rglob("*")
        if path.is_file()
    }
    archive = write_zip(tmp_path / "own.zip", members)
    data = ImageFolder(str(tmp_path / "out"), archive=str(archive), image_size=8)
    assert data.num_classes == 3
    assert (tmp_path / "out" / "train" / "cat").is_dir()


def test_a_missing_test_folder_says_what_there_is(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "mine")
    (root / "test").rename(root / "valid")
    with pytest.raises(FileNotFoundError, match=r"no folder .*test .*'train', 'valid'.*test_dir"):
        make(tmp_path).setup("fit")


def test_classes_that_differ_are_named(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "mine")
    (root / "test" / "owl").rename(root / "test" / "owls")
    with pytest.raises(ValueError, match=r"'owl' only in the first, 'owls' only in the second"):
        make(tmp_path).setup("fit")


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "mine")
    for path in (root / "test" / "dog").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"test/dog holds no images"):
        make(tmp_path).setup("fit")


def test_an_empty_part_and_a_missing_root_are_named(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "mine")
    shutil.rmtree(root / "train")
    (root / "train").mkdir()
    with pytest.raises(ValueError, match=r"train holds 0 class folders"):
        make(tmp_path).setup("fit")
    with pytest.raises(FileNotFoundError, match=r"no data in .*gone"):
        ImageFolder(str(tmp_path / "gone"), image_size=8).prepare_data()


def test_a_class_with_fewer_images_than_the_subset_wants_is_named(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "mine")
    for i in range(5):
        next((root / "train" / "dog").glob(f"{i:04d}.*")).unlink()
    with pytest.raises(ValueError, match=r"'dog' has 3 training images.*asks for 4"):
        make(tmp_path, subset=Subset(per_class=4), val_images=0).setup("fit")


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    data = make(tmp_path)
    (tmp_path / "mine" / "test" / "dog" / "0001.jpg").write_bytes(b"no image")
    data.setup("test")
    with pytest.raises(RuntimeError, match=r"Cannot read the image .*dog/0001\.jpg"):
        list(data.test_dataloader())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, r"image_size is 0; give one number"),
        ({"image_size": (1, 2, 3)}, r"image_size is \(1, 2, 3\)"),
        ({"resize": "pad"}, "'pad'; use crop or stretch"),
        ({"test_dir": "train"}, "are both 'train'"),
        ({"test_dir": "train/"}, "are both 'train'"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageFolder("x", **{"image_size": 8, **options})


def test_the_fingerprint_does_not_depend_on_the_root(tmp_path: Path) -> None:
    before = make(tmp_path).protocol()
    (tmp_path / "b").mkdir()
    shutil.copytree(tmp_path / "mine", tmp_path / "b" / "mine")
    assert make(tmp_path / "b").protocol() == before
    image = Image.fromarray(class_image(0, 77, size=(10, 10)))
    image.save(tmp_path / "b" / "mine" / "train" / "cat" / "more.png")
    assert make(tmp_path / "b").protocol()["data_sha256"] != before["data_sha256"]


@pytest.mark.shared_data
def test_real_photographs_in_class_folders(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KORA_SHARED_DATA", str(shared_data))
    data = ImageFolder(
        str(tmp_path / "cifar10"),
        archive="$KORA_SHARED_DATA/cifar10-images-small.zip",
        image_size=32,
        num_workers=0,
    )
    assert data.num_classes == 10
    data.setup("fit")
    assert data.protocol()["sizes"] == {"train": 4500, "val": 500, "test": 5000}
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (64, 3, 32, 32)


def test_names_that_are_not_utf8_are_read_and_as_class_folders_refused(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "mine")
    image = next((root / "train" / "cat").iterdir())
    image.rename(image.with_name(os.fsdecode(b"caf\xe9" + os.fsencode(image.suffix))))
    data = ImageFolder(str(root), image_size=32, num_workers=0, val_images=3)
    assert len(data.protocol()["data_sha256"]) == 64
    (root / "train" / "cat").rename(root / "train" / os.fsdecode(b"caf\xe9"))
    with pytest.raises(ValueError, match=r"caf\\udce9 has a name that is not UTF-8. Rename it"):
        ImageFolder(str(root), image_size=32).setup()
