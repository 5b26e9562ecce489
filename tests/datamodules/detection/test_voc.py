"""Claims about Pascal VOC's XML: what is refused, in one line that names the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.detection.layouts import Source
from datamodules.detection.voc import read_voc
from tests.support.detection import objects, write_voc

BOMB = (
    '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
    "<annotation><object><name>&b;</name></object></annotation>"
)


def source(root: Path, **files: str) -> Source:
    write_voc(root, objects(4))
    for name, text in files.items():
        (root / "annotations" / f"{name}.xml").write_text(text)
    return Source(root / "images", root / "annotations")


def one(box: str = "", **replaced: str) -> str:
    """A file of one object whose corners are 2, 3, 12 and 13 if not replaced."""
    corners = {"xmin": "2", "ymin": "3", "xmax": "12", "ymax": "13", **replaced}
    inside = box or "".join(f"<{name}>{value}</{name}>" for name, value in corners.items())
    found = f"<object><name>cat</name><bndbox>{inside}</bndbox></object>"
    size = "<size><width>40</width><height>24</height></size>"
    return f"<annotation>{size}{found}</annotation>"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "declares a document type"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "declares a document type"),
        ("<annotation>", "cannot be read as XML"),
        (one(xmax="1"), "object 1: .*wrong way round"),
        (one(xmin="41", xmax="50"), "object 1: .*lies outside of its image"),
        (one(xmin="two"), "bndbox/xmin is 'two'; expected a number"),
        (one().replace("40<", "inf<"), "size/width is 'inf'; expected a number"),
        (one().replace("24<", "nan<"), "size/height is 'nan'; expected a number"),
        ("<html/>", "its root is <html>; expected <annotation>"),
        (one("<xmin>2</xmin>"), "object 1: it has no name or no bndbox"),
    ],
)
def test_a_fault_is_one_line_that_names_the_file(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=rf"^{tmp_path}/annotations/p1\.xml.*{said}") as caught:
        read_voc(source(tmp_path, p1=text))
    assert "\n" not in str(caught.value)


def test_shares_where_pixels_are_expected_are_noticed(tmp_path: Path) -> None:
    text = one(xmin="0.1", ymin="0.2", xmax="0.4", ymax="0.9")
    files = source(tmp_path, **dict.fromkeys(("p1", "p2", "p3"), text))
    with pytest.raises(ValueError, match=r"no number of any box is above 1.*p1\.png"):
        read_voc(files)


def test_a_file_without_an_image_is_refused(tmp_path: Path) -> None:
    files = source(tmp_path)
    (tmp_path / "images/p1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 4 images are not in .*images, such as p1"):
        read_voc(files)


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    files = source(tmp_path)
    (tmp_path / "images/p1.jpeg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"p1\.\w+ and .*p1\.\w+ have one name"):
        read_voc(files)


def test_an_image_without_a_file_is_not_used_and_one_without_objects_is(tmp_path: Path) -> None:
    files = source(tmp_path)
    (tmp_path / "annotations/p1.xml").unlink()
    with pytest.warns(UserWarning, match="1 of 4 images in .* have no XML file"):
        pictures = read_voc(files).pictures
    assert [picture.name for picture in pictures] == ["p0.png", "p2.png", "p3.png"]
    assert pictures[0].boxes.corners.shape == (0, 4)


@pytest.mark.parametrize("mark", ["1", "Unspecified", ""])
def test_a_difficult_object_is_like_any_other(tmp_path: Path, mark: str) -> None:
    # As a crowd it would forgive any box inside of it.
    text = one().replace("<bndbox>", f"<difficult>{mark}</difficult><bndbox>")
    boxes = read_voc(source(tmp_path, p1=text)).pictures[1].boxes
    assert boxes.crowd.tolist() == [False]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("p1\nnone\n", r"names none, and there is no .*none\.xml"),
        ("p1\np2\np1\n", "names p1 twice"),
        ("p1\n../annotations/p2\n", r"names \.\./annotations/p2, which leads out of .*annotations"),
    ],
)
def test_a_wrong_line_of_a_list_is_named(tmp_path: Path, lines: str, said: str) -> None:
    files, listed = source(tmp_path), tmp_path / "train.txt"
    listed.write_text(lines)
    with pytest.raises((FileNotFoundError, ValueError), match=said):
        read_voc(Source(files.images, files.boxes, listed))


def test_a_name_in_a_list_may_have_spaces(tmp_path: Path) -> None:
    files, listed = source(tmp_path), tmp_path / "train.txt"
    for path in (tmp_path / "images/p1.png", tmp_path / "annotations/p1.xml"):
        path.rename(path.with_stem("IMG 1"))
    listed.write_text("IMG 1\n\np2\n")
    found = read_voc(Source(files.images, files.boxes, listed)).pictures
    assert [picture.name for picture in found] == ["IMG 1.png", "p2.png"]


def test_a_list_may_have_a_byte_order_mark_and_is_utf_8(tmp_path: Path) -> None:
    files, listed = source(tmp_path), tmp_path / "train.txt"
    listed.write_bytes(b"\xef\xbb\xbfp1\r\np2\r\n")
    found = read_voc(Source(files.images, files.boxes, listed)).pictures
    assert [picture.name for picture in found] == ["p1.png", "p2.png"]
    listed.write_bytes(b"p1\n\xe4\n")
    with pytest.raises(ValueError, match=r"train\.txt: cannot be read as text in UTF-8"):
        read_voc(Source(files.images, files.boxes, listed))
