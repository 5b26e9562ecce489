"""Which pictures a folder holds, and what is said of one that cannot be learnt from."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from kora.adaptation.layout import MOST_CLASSES, find_pictures


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")  # nothing is opened here
    return root


def rows(root: Path) -> set[tuple[str, str, str]]:
    return {(row.path, row.label, row.part) for row in find_pictures(root).rows}


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    put(tmp_path, "cat/a.jpg", "cat/b.PNG", "dog/a.jpg", "dog/deep/b.webp", ".git/x/c.jpg")
    assert rows(tmp_path) == {
        ("cat/a.jpg", "cat", ""),
        ("cat/b.PNG", "cat", ""),
        ("dog/a.jpg", "dog", ""),
        ("dog/deep/b.webp", "dog", ""),
    }
    (note,) = find_pictures(tmp_path).notes
    assert note == "Pictures in deeper folders count for the outermost: those of dog."


@pytest.mark.parametrize("names", [("train", "test"), ("Training", "TESTING")])
def test_parts_with_class_folders(tmp_path: Path, names: tuple[str, str]) -> None:
    train, test = names
    put(tmp_path, *(f"{part}/{kind}/{n}.jpg" for part in names for kind in "ab" for n in "12"))
    put(tmp_path, "validation/a/9.jpg", "validation/b/9.jpg", "notes/a.txt")
    found = find_pictures(tmp_path)
    assert {row.part for row in found.rows} == {"train", "val", "test"}
    assert (f"{train}/a/1.jpg", "a", "train") in rows(tmp_path)
    assert (f"{test}/b/2.jpg", "b", "test") in rows(tmp_path)
    assert found.notes == ["Left out, as they are no part: notes."]


def test_a_name_that_no_table_can_hold_is_refused_before_the_work(tmp_path: Path) -> None:
    put(tmp_path, "cat/a.jpg", "dog/a.jpg")
    (tmp_path / "dog" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    with pytest.raises(ValueError, match=r"dog: the name b'caf\\xe9\.jpg' is no UTF-8\. Rename it"):
        find_pictures(tmp_path)


@pytest.mark.parametrize("comma", [",", ";"])
def test_a_table_of_paths_and_labels(tmp_path: Path, comma: str) -> None:
    lines = ["path,label,part", "x/1.jpg,cat,train", "x/2.jpg,cat,test"]
    lines += ["y/1.jpg,dog,train", "y/2.jpg,dog,test"]
    file = tmp_path / "mine.csv"
    file.write_text("\ufeff" + "\n".join(lines).replace(",", comma), encoding="utf-8")
    assert rows(file) == {
        ("x/1.jpg", "cat", "train"), ("x/2.jpg", "cat", "test"),
        ("y/1.jpg", "dog", "train"), ("y/2.jpg", "dog", "test"),
    }  # fmt: skip
    assert find_pictures(file).root == tmp_path


def test_a_class_may_begin_with_an_underscore(tmp_path: Path) -> None:
    put(tmp_path, *(f"{kind}/{n}.jpg" for kind in ("cat", "dog", "_other") for n in "12"))
    assert find_pictures(tmp_path).labels == ["_other", "cat", "dog"]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    put(tmp_path, *(f"{kind}/{n}.jpg" for kind in ("bus", "car", "train") for n in "12"))
    assert find_pictures(tmp_path).labels == ["bus", "car", "train"]


def test_parts_without_one_to_train_on_are_no_classes(tmp_path: Path) -> None:
    put(tmp_path, *(f"{part}/{kind}/{n}.jpg" for part in ("val", "test") for kind in "ab"
                    for n in "12"))  # fmt: skip
    with pytest.raises(ValueError, match=r"has test, val and no folder train\. Add one"):
        find_pictures(tmp_path)


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg", "a/2.jpg", "a/readme.txt", "b/1.jpg", "b/2.jpg", "c/x.txt", "7.jpg")
    assert find_pictures(tmp_path).labels == ["a", "b"]
    assert find_pictures(tmp_path).notes == [
        "Pictures outside of the classes, left out: 1 (7.jpg).",
        "Files that are no pictures, left out: 2 (a/readme.txt, c/x.txt).",
        "Folders without pictures, left out: c.",
    ]


def flat(root: Path) -> Path:
    return put(root, "1.jpg", "2.jpg")


def nested(root: Path) -> Path:
    return put(root, "photos/cat/1.jpg", "photos/dog/1.jpg")


def many(root: Path) -> Path:
    lines = [f"{n}.jpg,{n // 2}" for n in range(2 * MOST_CLASSES + 2)]
    (root / "many.csv").write_text("path,label\n" + "\n".join(lines))
    return root / "many.csv"


def no_label(root: Path) -> Path:
    (root / "t.csv").write_text("path,class\n1.jpg,cat\n")
    return root / "t.csv"


def empty_label(root: Path) -> Path:
    (root / "t.csv").write_text("path,label\n1.jpg,cat\n2.jpg,\n")
    return root / "t.csv"


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nothing there": (lambda r: r / "none", "There is no folder .*none. Name a folder"),
    "a file": (lambda r: put(r, "x.zip") / "x.zip", "x.zip is a file. Name a folder of pictures"),
    "empty": (lambda r: r, "holds no pictures. Expected .*/CLASS/PICTURE"),
    "one class": (lambda r: put(r, "cat/1.jpg", "cat/2.jpg"), "one class, 'cat', and .* Add a"),
    "one folder of classes": (nested, "one class, 'photos', .* try kora adapt .*photos"),
    "pictures in the folder itself": (flat, r"holds 2 pictures itself \(1.jpg, 2.jpg\)"),
    "a class with one picture": (
        lambda r: put(r, "cat/1.jpg", "cat/2.jpg", "dog/1.jpg"),
        "class 'dog' of .* has one picture; two are the least",
    ),
    "names that differ by case": (
        lambda r: put(r, "Cat/1.jpg", "Cat/2.jpg", "cat /1.jpg", "cat /2.jpg"),
        "'Cat' and 'cat ' of .* differ only in case or spaces",
    ),
    "a name with a space": (
        lambda r: put(r, "cat/1.jpg", "cat/2.jpg", " dog/1.jpg", " dog/2.jpg"),
        "class ' dog' of .* begins or ends with a space",
    ),
    "too many classes": (many, f"has {MOST_CLASSES + 1:,} classes, and kora adapt takes"),
    "depth": (
        lambda r: put(r, "images/1.jpg", "depth/1.png"),
        "folders 'images' and 'depth', as data for depth do",
    ),
    "a class in the test alone": (
        lambda r: put(r, *(f"{p}/1.jpg" for p in ("train/a", "train/b", "test/a", "test/c"))),
        "test part of .* classes without training pictures: c",
    ),
    "a table without labels": (no_label, r"t.csv has no column 'label' \(.*path, class\)"),
    "a row without a label": (empty_label, "t.csv, line 3 has no label"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_learnt_from_gets_one_clear_line(case: str, tmp_path: Path) -> None:
    make, expected = BAD[case]
    with pytest.raises((ValueError, FileNotFoundError), match=expected) as caught:
        find_pictures(make(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_folder_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/2.jpg")
    closed = tmp_path / "dog"
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != closed)  # root may read all
    with pytest.raises(PermissionError, match=re.escape(f"The folder {closed} may not be read")):
        find_pictures(tmp_path)


def test_every_ending_that_pillow_reads_is_a_picture(tmp_path: Path) -> None:
    for suffix in ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif"):
        for kind in "ab":
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.new("RGB", (4, 4)).save(tmp_path / kind / f"1.{suffix}")
    assert len(rows(tmp_path)) == 14
