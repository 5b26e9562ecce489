"""Images that a CSV file names."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules import ImageFolder, ImageTable, Subset
from datamodules.image_table import read_table
from tests.support.data_factory import write_class_folders


def table(tmp_path: Path, **changes: str) -> Path:
    """A table of the 24 training and 12 test images of class folders, with three folds."""
    root = tmp_path / "mine"
    if not root.exists():
        write_class_folders(root)
    lines = ["path,label,part,fold"]
    for part in ("train", "test"):
        for number, path in enumerate(sorted((root / part).glob("*/*.*"))):
            name = path.relative_to(tmp_path).as_posix()
            fold = str(number % 3) if part == "train" else ""
            lines.append(f"{name},{path.parent.name},{changes.get(name, part)},{fold}")
    file = tmp_path / "mine.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def make(tmp_path: Path, **options: Any) -> ImageTable:
    file = tmp_path / "mine.csv"
    named = file if file.exists() else table(tmp_path)
    return ImageTable(str(named), **{"image_size": (24, 32), "num_workers": 0, **options})


def test_its_images_are_those_of_the_folders(tmp_path: Path) -> None:
    data = make(tmp_path, val_fraction=0)
    folders = ImageFolder(
        str(tmp_path / "mine"), image_size=(24, 32), num_workers=0, val_fraction=0
    )
    data.setup()
    folders.setup()
    assert data.class_names == folders.class_names
    for split in ("train", "test"):
        assert torch.equal(*(it.images(split, [0, 5, 3]) for it in (data, folders)))
        assert (data.labels(split) == folders.labels(split)).all()
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (24, 3, 24, 32)


def test_a_fold_validates_and_the_others_train(tmp_path: Path) -> None:
    data = make(tmp_path, val_fold=1)
    data.setup_splits()
    assert data.indices("val").tolist() == list(range(1, 24, 3))
    assert len(data.indices("train")) == 16
    assert data.validates
    assert data.protocol()["val_fold"] == 1


def test_rows_of_the_part_val_validate(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "mine")
    first = sorted((tmp_path / "mine/train").glob("*/*.*"))[:2]
    table(tmp_path, **{path.relative_to(tmp_path).as_posix(): "val" for path in first})
    for options in ({}, {"val_fraction": 0}):
        data = make(tmp_path, **options)
        data.setup_splits()
        assert data.validates
        assert data.indices("val").tolist() == [0, 1]
        assert data.protocol()["official_split"]["val"] == "val"


def test_without_either_the_share_validates_as_everywhere(tmp_path: Path) -> None:
    data = make(tmp_path, val_fraction=0.25)
    data.setup_splits()
    assert len(data.indices("val")) == 6


def test_the_fingerprint_changes_with_rows_and_files_not_with_the_place(tmp_path: Path) -> None:
    before = make(tmp_path).fingerprint()
    assert make(tmp_path).fingerprint() == before
    file = tmp_path / "mine.csv"
    whole = file.read_text()
    file.write_text(whole.replace(",train,0", ",train,1", 1))
    assert make(tmp_path).fingerprint() != before
    file.write_text(whole)
    image = sorted((tmp_path / "mine/test").glob("*/*.*"))[0]
    image.write_bytes(image.read_bytes() + b" ")
    assert make(tmp_path).fingerprint() != before


def test_a_cache_of_decoded_images_gives_the_same(tmp_path: Path) -> None:
    plain = make(tmp_path)
    cached = make(tmp_path, cache=str(tmp_path / "cache"))
    assert "decoded images are in" in str(cached.prepare_cache())
    batches = [next(iter(data.test_dataloader())) for data in (plain, cached)]
    assert all((batches[0][name] == batches[1][name]).all() for name in batches[0])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"image_size": 0}, "data.image_size is 0"),
        ({"resize": "fit"}, "data.resize is 'fit'; use crop or stretch"),
        ({"val_fold": 7}, "data.val_fold is 7, and .* has the folds 0, 1, 2. Name one"),
        ({"val_fold": 1, "subset": Subset(per_class=2)}, "data.subset draws from all"),
    ],
)
def test_options_out_of_range_are_named(
    options: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=expected):
        make(tmp_path, **options).setup_splits()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", r"mine.csv has no column 'path' \(its first line has: nothing\)"),
        ("path,label\na.png,x\n", "mine.csv has no column 'part'. Give each row train"),
        ("path,label,part\na.png,x,tset\n", "line 2: part is 'tset', expected train, val, test"),
        ("path,label,part,fold\na.png,x,train,one\n", "line 2: fold is 'one', expected a whole"),
        ("path,label,part\na.png,x,train\n", "has no row with part 'test'. Add some"),
        ("path,label,part\na.png,x,train\nb.png,y,test\n", "label 'y' of b.png has no training"),
        ('path,label,part\n"a.png,x,train\n', "mine.csv, after line 1: unexpected end of data"),
    ],
)
def test_a_table_that_is_not_complete_is_refused_with_its_line(
    text: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.csv").write_text(text)
    with pytest.raises(ValueError, match=expected):
        make(tmp_path).setup_splits()


@pytest.mark.parametrize("odd", ["\n", "\u2028", "\u0085", "\x0b"])
def test_a_name_may_hold_what_some_take_for_the_end_of_a_line(tmp_path: Path, odd: str) -> None:
    file = tmp_path / "t.csv"
    with file.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([("path", "label"), (f"a/x{odd}y.png", "a"), ("b/1.png", "b")])
    assert [row.path for row in read_table(file)] == [f"a/x{odd}y.png", "b/1.png"]


def test_a_table_that_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_bytes(b"path,label,part\n\xff\xfe")
    with pytest.raises(ValueError, match=r"mine\.csv is no text in UTF-8"):
        make(tmp_path).setup_splits()
    (tmp_path / "mine.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no table .*mine\.csv"):
        ImageTable(str(tmp_path / "mine.csv"), image_size=8).setup_splits()


@pytest.mark.parametrize("kind", ["part", "fold"])
def test_a_group_on_both_sides_of_what_the_table_says_is_warned_of(
    tmp_path: Path, kind: str
) -> None:
    file = table(tmp_path)
    first, *lines = file.read_text().splitlines()
    if kind == "part":
        lines[0] = lines[0].replace(",train,", ",val,")
    file.write_text("\n".join([f"{first},group", *(f"{line},patient" for line in lines)]))
    data = make(tmp_path, val_fold=1 if kind == "fold" else None)
    with pytest.warns(UserWarning, match="images belong to groups") as said:
        data.setup_splits()
    told = " ".join(str(one.message) for one in said)
    assert f"{'8 of 8' if kind == 'fold' else '1 of 1'} validation images" in told
    tests = len(data.indices("test"))
    assert f"{tests} of {tests} test images" in told


def test_a_picture_that_trains_and_tests_is_refused(tmp_path: Path) -> None:
    file = table(tmp_path)
    first = file.read_text().splitlines()[1]
    file.write_text(file.read_text() + first.replace(",train,", ",test,") + "\n")
    with pytest.raises(ValueError, match=r"mine\.csv: .*0\.\w+ is in the parts train and test"):
        make(tmp_path).setup_splits()


def test_images_that_are_not_there_are_counted_and_one_is_named(tmp_path: Path) -> None:
    data = make(tmp_path)
    (tmp_path / data.rows["test"][0].path).unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 33 images are not in .*, such as mine/test"):
        data.prepare_data()
