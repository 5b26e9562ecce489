"""Claims about YOLO's text files: what is refused, in one line that names the file and the line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from datamodules.detection.layouts import Source
from datamodules.detection.yolo import read_yolo, yolo_names
from tests.support.detection import NAMES, objects, write_yolo


def source(root: Path) -> Source:
    write_yolo(root, objects(4))
    return Source(root / "images", root / "labels")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 20 12 10 8", "20 is above 1, so the box is in pixels"),
        ("2 0.5 0.5 0.1 0.1", "the class 2 is unknown; there are 2, 0 to 1"),
        ("-1 0.5 0.5 0.1 0.1", "the class -1 is unknown"),
        ("0.5 0.5 0.5 0.1 0.1", "expected class cx cy w h, the class a whole number"),
        ("0 0.5 0.5 0.1", "found '0 0.5 0.5 0.1', expected class cx cy w h"),
        ("0 0.5 0.5 -0.1 0.1", "wrong way round"),
        ("0 -0.5 0.5 0.1 0.1", "lies outside of its image"),
        ("0 nan 0.5 0.1 0.1", "is not finite"),
    ],
)
def test_a_fault_is_one_line_that_names_file_and_line(tmp_path: Path, line: str, said: str) -> None:
    files = source(tmp_path)
    (tmp_path / "labels/p1.txt").write_text(f"0 0.5 0.5 0.2 0.2\n\n{line}\n")
    with pytest.raises(
        ValueError, match=rf"^{tmp_path}/labels/p1\.txt, line 3: .*{said}"
    ) as caught:
        read_yolo(files, NAMES)
    assert "\n" not in str(caught.value)


def test_boxes_without_an_image_are_refused(tmp_path: Path) -> None:
    files = source(tmp_path)
    (tmp_path / "images/p1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"p1\.txt has no image in .*images"):
        read_yolo(files, NAMES)


def test_two_images_that_share_a_file_are_refused(tmp_path: Path) -> None:
    files = source(tmp_path)  # one of them would test what the other one trains
    shutil.copy(tmp_path / "images/p1.png", tmp_path / "images/p1.bmp")
    with pytest.raises(ValueError, match=r"p1\.\w+ and .*p1\.\w+ have one name"):
        read_yolo(files, NAMES)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("names: [a, b]", ["a", "b"]),
        ("nc: 2\nnames:\n  1: b\n  0: a\n", ["a", "b"]),
        ("names: {0: 2017, 1: b}", ["2017", "b"]),
    ],
)
def test_names_are_a_list_or_a_table(tmp_path: Path, text: str, names: list[str]) -> None:
    (tmp_path / "data.yaml").write_text(text)
    assert yolo_names(tmp_path, tmp_path) == names


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nc: 2", "expected names"),
        ("names: {0: a, 2: b}", "expected names"),
        ("names: [[a]]", "expected names"),
        ("a: &a [x]\nnames: [*a]", "uses aliases"),
        ("names: !!python/object/apply:os.system [ls]", "cannot be read as YAML"),
        ("names: [", "cannot be read as YAML"),
    ],
)
def test_a_table_of_names_that_is_none_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"data\.yaml: .*{said}") as caught:
        yolo_names(tmp_path, tmp_path)
    assert "\n" not in str(caught.value)


def test_classes_that_are_not_utf_8_are_named(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes(b"k\xe4t\n")
    with pytest.raises(ValueError, match=r"classes\.txt: cannot be read as text in UTF-8"):
        yolo_names(tmp_path, tmp_path)


def test_an_empty_line_among_the_classes_would_shift_them_and_is_refused(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\n\ndog\n")
    with pytest.raises(ValueError, match=r"classes\.txt, line 2 is empty"):
        yolo_names(tmp_path, tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ndog\n\n")
    assert yolo_names(tmp_path, tmp_path) == ["cat", "dog"]


def test_an_ending_in_capitals_is_read(tmp_path: Path) -> None:
    files = source(tmp_path)
    (tmp_path / "labels/p2.txt").rename(tmp_path / "labels/p2.TXT")
    found = read_yolo(files, NAMES).pictures
    assert [len(picture.boxes.labels) for picture in found] == [0, 1, 2, 2]
