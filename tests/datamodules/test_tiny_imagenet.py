"""Claims about Tiny ImageNet: on a zip in the official layout, and on real images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules import Subset, TinyImageNet
from tests.support.data_factory import WNIDS, class_image, jpeg_bytes, write_tiny_imagenet_zip


def make(tmp_path: Path, *, classes: Any = "0:4", **options: Any) -> TinyImageNet:
    archive = tmp_path / "small.zip"
    if not archive.exists():
        write_tiny_imagenet_zip(archive)
    data = TinyImageNet(str(tmp_path / "root"), archive=str(archive), classes=classes, **options)
    data.prepare_data()
    return data


def wnids_of(data: TinyImageNet) -> list[str]:
    return (data.folder / "wnids.txt").read_text().split()


def looks_like(image: np.ndarray, label: int) -> bool:
    """Whether the mean colour of (3, H, W) is closest to that class of the factory."""
    colours = [class_image(k, 0, size=(64, 64)).mean((0, 1)) for k in range(4)]
    distances = [np.abs(colour - image.mean((1, 2))).sum() for colour in colours]
    return int(np.argmin(distances)) == label


def test_validation_labels_come_from_the_annotations_of_the_flat_folder(tmp_path: Path) -> None:
    data = make(tmp_path)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    assert np.bincount(batch["label"]).tolist() == [3, 3, 3, 3]
    for image, label in zip(batch["image"].numpy(), batch["label"].tolist(), strict=True):
        assert looks_like(image, label)
    assert data.protocol()["official_split"]["test"] == "val"


def test_a_greyscale_jpeg_becomes_rgb(tmp_path: Path) -> None:
    data = make(tmp_path, val_fraction=0)
    data.setup("fit")
    images = data.images("train", range(40)).float()
    grey = (images[:, 0] - images[:, 1]).abs().mean((1, 2)) < 1
    assert images.shape == (40, 3, 64, 64)
    assert grey.nonzero().flatten().tolist() == [0, 10, 20, 30]


@pytest.mark.parametrize("kind", ["places", "wnids"])
def test_classes_are_renumbered_in_the_order_given(tmp_path: Path, kind: str) -> None:
    order = [2, 0]
    everything = make(tmp_path)
    wnids = wnids_of(everything)
    data = make(tmp_path, classes=order if kind == "places" else [wnids[i] for i in order])
    data.setup("test")
    assert data.num_classes == 2
    assert data.class_names == ["thing 2", "thing 0"]
    for image, label in zip(
        data.images("test", range(6)).numpy(),
        data.labels("test"),
        strict=True,
    ):
        assert looks_like(image, order[label])


def test_index_is_the_place_in_the_whole_official_split(tmp_path: Path) -> None:
    everything, some = make(tmp_path), make(tmp_path, classes="1:3")
    for data in (everything, some):
        data.setup_splits()
    labels = dict(zip(everything.indices("test"), everything.labels("test"), strict=True))
    for index, label in zip(some.indices("test"), some.labels("test"), strict=True):
        assert labels[index] == label + 1


def test_sorted_order_is_that_of_paths_so_first_takes_the_first_wnids(tmp_path: Path) -> None:
    data = make(tmp_path, subset=Subset(fraction=0.5, how="first"), val_fraction=0)
    data.setup_splits()
    taken = {wnids_of(data)[label] for label in data.labels("train")}
    assert taken == set(sorted(WNIDS[:4])[:2])
    assert wnids_of(data) != sorted(wnids_of(data))


def test_the_published_reading_of_the_validation_folder_is_one_class(tmp_path: Path) -> None:
    data = make(tmp_path, val_layout="folders")
    data.setup_splits()
    assert data.labels("test").tolist() == [0] * 12
    assert data.protocol()["val_layout"] == "folders"
    assert data.num_classes == 4


def test_read_as_class_folders_classes_are_numbered_in_sorted_order(tmp_path: Path) -> None:
    first = Subset(fraction=0.5, how="first")
    data = make(tmp_path, val_layout="folders", subset=first, val_fraction=0)
    data.setup_splits()
    assert set(data.labels("train")) == {0, 1}, "the first folders, as in a reader of folders"


def test_number_of_classes_needs_no_data() -> None:
    assert TinyImageNet("nowhere").num_classes == 200
    assert TinyImageNet("nowhere", classes="100:200").num_classes == 100


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("all", r"'all'; write a range .*\"100:200\""),
        ("5:3", "start below end"),
        ("0:201", "at most 200"),
        (620, "is the number 620.*in quotes"),
        ([1, 1], "holds 1 more than once"),
        ([1, 200], r"holds 200; places in wnids.txt are 0\.\.199"),
        ([1], "holds 1 classes; a task needs at least 2"),
    ],
)
def test_a_choice_of_classes_that_cannot_be_is_refused(classes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TinyImageNet("nowhere", classes=classes)


@pytest.mark.parametrize("classes", [["n00000001", "n00000002"], "0:5"])
def test_a_class_that_the_archive_lacks_is_named(tmp_path: Path, classes: Any) -> None:
    data = make(tmp_path, classes=classes)
    with pytest.raises(ValueError, match=r"asks for class .*wnids\.txt lists 4 classes"):
        data.setup("fit")


def test_a_class_that_is_listed_twice_is_named(tmp_path: Path) -> None:
    data = make(tmp_path)
    first, *_ = wnids_of(data)
    with (data.folder / "wnids.txt").open("a") as file:
        file.write(f"{first}\n")
    with pytest.raises(RuntimeError, match=rf"wnids\.txt lists {first} twice"):
        data.setup("fit")


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    data = make(tmp_path)
    (data.folder / "val" / "images" / "val_5.JPEG").write_bytes(b"no image")
    with pytest.raises(RuntimeError, match=r"Cannot read the image .*val_5\.JPEG"):
        data.setup("test")


def test_an_image_of_another_size_is_named(tmp_path: Path) -> None:
    data = make(tmp_path)
    odd = jpeg_bytes(class_image(0, 0, size=(32, 64)))
    (data.folder / "val" / "images" / "val_5.JPEG").write_bytes(odd)
    with pytest.raises(RuntimeError, match=r"val_5\.JPEG is 32 x 64 pixels, expected 64 x 64"):
        data.setup("test")


def test_annotations_and_images_that_disagree_are_an_error(tmp_path: Path) -> None:
    data = make(tmp_path)
    (data.folder / "val" / "images" / "val_5.JPEG").unlink()
    with pytest.raises(RuntimeError, match=r"val_annotations\.txt .*1 images .*val_5\.JPEG"):
        data.setup("test")


def test_a_training_folder_without_images_is_named(tmp_path: Path) -> None:
    data = make(tmp_path)
    wnid = wnids_of(data)[1]
    for path in (data.folder / "train" / wnid / "images").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{wnid}/images has no images"):
        data.setup("fit")


@pytest.mark.parametrize("lost", ["wnids.txt", "words.txt", "train", "val/val_annotations.txt"])
def test_a_missing_part_says_how_to_get_it(tmp_path: Path, lost: str) -> None:
    data = make(tmp_path)
    (data.folder / lost).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=rf"{lost} is missing.*kora data prepare"):
        data.setup("fit")


@pytest.mark.parametrize("name", ["wnids.txt", "words.txt", "val/val_annotations.txt"])
def test_a_list_that_is_not_utf8_is_named(tmp_path: Path, name: str) -> None:
    data = make(tmp_path)
    with (data.folder / name).open("ab") as file:
        file.write(b"\xff")
    with pytest.raises(RuntimeError, match=rf"{name} is damaged: it is not UTF-8.*kora data"):
        data.setup("fit")


def test_the_fingerprint_notices_a_changed_image(tmp_path: Path) -> None:
    before = make(tmp_path).protocol()["data_sha256"]
    data = make(tmp_path)
    assert data.protocol()["data_sha256"] == before
    pixels = class_image(3, 99, size=(64, 64))
    (data.folder / "val" / "images" / "val_0.JPEG").write_bytes(jpeg_bytes(pixels))
    assert make(tmp_path).protocol()["data_sha256"] != before


@pytest.fixture(scope="module")
def archive(shared_data: Path) -> str:
    return str(shared_data / "tiny-imagenet-200-small.zip")


@pytest.fixture(scope="module")
def real_root(archive: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny-imagenet")
    TinyImageNet(str(root), archive=archive).prepare_data()
    return root


@pytest.mark.shared_data
def test_real_images_of_the_last_hundred_classes(
    real_root: Path, archive: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KORA_SHARED_DATA", str(Path(archive).parent))
    data = TinyImageNet(
        str(real_root),
        archive="$KORA_SHARED_DATA/tiny-imagenet-200-small.zip",
        classes="100:200",
        subset=Subset(per_class=1),
        val_images=100,
    )
    data.prepare_data()
    data.setup("fit")
    summary = data.summary()["splits"]
    assert [summary[s]["images"] for s in ("train", "val", "test")] == [100, 100, 5000]
    assert all(summary[split]["classes"] == 100 for split in summary)
    assert summary["test"]["images_per_class_min"] == summary["test"]["images_per_class_max"] == 50
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (64, 3, 64, 64)
    assert 40 < batch["image"].float().std() < 100


@pytest.mark.shared_data
def test_real_images_in_the_published_protocol_are_degenerate(
    real_root: Path, archive: str
) -> None:
    data = TinyImageNet(
        str(real_root),
        subset=Subset(fraction=0.005, how="first"),
        val_fraction=0,
        val_layout="folders",
        archive=archive,
    )
    data.setup_splits()
    assert len(set(data.labels("train"))) == 2
    assert len(set(data.labels("test"))) == 1
