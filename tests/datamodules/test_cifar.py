"""Claims about CIFAR, on archives in the official layout."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules import CIFAR, Subset
from datamodules.cifar import _LAYOUTS, _unpickle
from tests.support.data_factory import class_image, write_cifar_archive


def make(tmp_path: Path, *, variant: int = 10, **options: Any) -> CIFAR:
    archive = tmp_path / f"small-{variant}.tar.gz"
    if not archive.exists():
        write_cifar_archive(archive, variant=variant)
    data = CIFAR(str(tmp_path / "root"), variant=variant, archive=str(archive), **options)
    data.prepare_data()
    return data


@pytest.mark.parametrize("variant", [10, 100])
def test_pixels_labels_and_names_arrive_as_written(tmp_path: Path, variant: int) -> None:
    data = make(tmp_path, variant=variant, val_fraction=0.2)
    assert data.num_classes == variant
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert {name: (str(value.dtype), value.ndim) for name, value in batch.items()} == {
        "image": ("torch.uint8", 4),
        "label": ("torch.int64", 1),
        "index": ("torch.int64", 1),
    }
    for image, label, index in zip(batch["image"], batch["label"], batch["index"], strict=True):
        assert label == index % variant
        expected = class_image(int(label), int(index) // variant, size=(32, 32))
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)
    assert data.class_names[3] == "class_003"
    assert data.protocol()["sizes"] == {
        "train": 8 * variant,
        "val": 2 * variant,
        "test": 2 * variant,
    }


def test_the_number_of_classes_needs_no_data(tmp_path: Path) -> None:
    assert CIFAR(str(tmp_path / "nothing"), variant=100).num_classes == 100


def test_test_images_come_from_the_test_file(tmp_path: Path) -> None:
    data = make(tmp_path)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    expected = class_image(0, 10_000, size=(32, 32)).transpose(2, 0, 1)
    assert np.array_equal(batch["image"][0].numpy(), expected)
    assert batch["index"].tolist() == list(range(20))


def test_few_shot_subset_with_validation_outside(tmp_path: Path) -> None:
    data = make(tmp_path, subset=Subset(per_class=3), val_images=20)
    data.setup("fit")
    assert np.bincount(data.labels("train")).tolist() == [3] * 10
    assert np.bincount(data.labels("val")).tolist() == [2] * 10
    assert not set(data.indices("train")) & set(data.indices("val"))


def test_missing_data_says_how_to_get_it(tmp_path: Path) -> None:
    data = CIFAR(str(tmp_path), variant=10)
    with pytest.raises(FileNotFoundError, match=r"batches\.meta is missing.*kora data prepare"):
        data.setup("fit")


@pytest.mark.parametrize("label", [10, -1, None, "x", 0.5, 10**30, [3]])
@pytest.mark.parametrize("part", ["fit", "test"])
def test_a_label_that_is_no_class_is_named_by_file_and_row(
    tmp_path: Path, label: Any, part: str
) -> None:
    data = make(tmp_path)
    path = data.folder / {"fit": "data_batch_5", "test": "test_batch"}[part]
    content = _unpickle(path)
    content[b"labels"][7] = label
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(RuntimeError, match=rf"{path.name}: image 7 has label .*0\.\.9") as raised:
        data.setup(part)
    assert repr(label) in str(raised.value)


@pytest.mark.parametrize("name", [b"caf\xe9", "text", None])
def test_a_class_name_that_is_no_utf8_is_told_with_its_file(tmp_path: Path, name: Any) -> None:
    data = make(tmp_path)
    (data.folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [name] * 10}))
    with pytest.raises(RuntimeError, match=r"batches\.meta is damaged: its names of classes"):
        data.setup("fit")


def test_a_truncated_archive_leaves_no_folder(tmp_path: Path) -> None:
    archive = write_cifar_archive(tmp_path / "small-10.tar.gz")
    archive.write_bytes(archive.read_bytes()[:-5000])
    with pytest.raises(RuntimeError, match=r"small-10\.tar\.gz is damaged or truncated"):
        make(tmp_path)
    assert not (tmp_path / "root" / "cifar-10-batches-py").exists()


def test_a_member_outside_the_folder_leaves_no_folder(tmp_path: Path) -> None:
    write_cifar_archive(tmp_path / "small-10.tar.gz", extra={"../evil": b"evil"})
    with pytest.raises(RuntimeError, match=r"member '\.\./evil' would be written outside"):
        make(tmp_path)
    assert not (tmp_path / "root" / "cifar-10-batches-py").exists()
    assert not list(tmp_path.rglob("evil"))


def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "made"),)

    data = make(tmp_path)
    path = data.folder / "data_batch_2"
    path.write_bytes(pickle.dumps({b"data": Evil()}, protocol=2))
    with pytest.raises(RuntimeError, match=r"data_batch_2 .*it wants to load \w+\.mkdir"):
        data.setup("fit")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"", b"nonsense", pickle.dumps([1]), pickle.dumps({})])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    data = make(tmp_path)
    (data.folder / "test_batch").write_bytes(content)
    with pytest.raises(RuntimeError, match="test_batch"):
        data.setup("test")


def test_numpy_pickles_of_today_are_read_too(tmp_path: Path) -> None:
    value = {b"data": np.arange(12, dtype=np.uint8).reshape(3, 4), b"labels": [1, 2, 3]}
    for protocol in (2, 4):
        (tmp_path / "x").write_bytes(pickle.dumps(value, protocol=protocol))
        assert np.array_equal(_unpickle(tmp_path / "x")[b"data"], value[b"data"])


def test_the_fingerprint_changes_with_the_data(tmp_path: Path) -> None:
    first = make(tmp_path).protocol()["data_sha256"]
    assert make(tmp_path).protocol()["data_sha256"] == first
    (tmp_path / "b").mkdir()
    write_cifar_archive(tmp_path / "b" / "small-10.tar.gz", train_per_class=9)
    assert make(tmp_path / "b").protocol()["data_sha256"] != first


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="variant is 20; CIFAR has variants 10 and 100"):
        CIFAR(variant=20)


def test_official_checksums_are_those_of_the_data_sets_page() -> None:
    # https://www.cs.toronto.edu/~kriz/cifar.html
    assert _LAYOUTS[10].md5 == "c58f30108f718f92721af3b95e74349a"
    assert _LAYOUTS[100].md5 == "eb9058c3a382ffc7106e4002c42a8d85"


def test_a_second_setup_decodes_nothing_again(tmp_path: Path) -> None:
    data = make(tmp_path)
    data.setup("fit")
    before = data.images("train", [0])
    for path in data.folder.iterdir():
        path.unlink()
    data.setup("fit")
    assert torch.equal(data.images("train", [0]), before)
