"""Claims about COCO's json: what is refused, in one line that names the file and the id."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datamodules.detection.boxes import Annotations
from datamodules.detection.coco import read_coco
from datamodules.detection.layouts import Source
from tests.support.detection import coco, objects, write_images

Content = dict[str, Any]


def read(root: Path, content: Any) -> Annotations:
    write_images(root / "images", objects(4))
    file = root / "boxes.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_coco(Source(root / "images", file))


def shares(content: Content) -> None:
    for row in content["annotations"]:
        row["bbox"] = [0.2, 0.3, 0.25, 0.5]


def rounded_shares(content: Content) -> None:
    shares(content)
    first(content, bbox=[0.333334, 0.3, 0.666667, 0.5])


def another_set(content: Content) -> None:
    for number, image in enumerate(content["images"]):
        image["file_name"] = f"other{number}.jpg"


def first(content: Content, **change: Any) -> None:
    content["annotations"][0].update(change)


FAULTS: list[tuple[Callable[[Content], Any], str]] = [
    (rounded_shares, "they are shares of width and height"),
    (shares, r"no number of any box is above 1\.01, such as \(0\.2, .*p1\.png: they are shares"),
    (lambda c: first(c, bbox=[9, 9, -4, 5]), r"annotation 100 of the image 1 .*wrong way round"),
    (lambda c: first(c, bbox=[9, 9, float("nan"), 5]), "annotation 100 .* is not finite"),
    (lambda c: first(c, bbox=[9, 9, 5]), r"annotation 100 .*bbox is \[9, 9, 5\]; expected \[x, y"),
    (lambda c: first(c, bbox=None), "annotation 100 .*bbox is None"),
    (lambda c: first(c, bbox=[50, 9, 5, 5]), "annotation 100 .*lies outside of its image, .*24 x"),
    (lambda c: first(c, category_id=9), r"annotation 100 has the category_id 9, .* are 7, 3"),
    (lambda c: c["images"][0].update(file_name="../images/p0.png"), r"image 0 leads out of"),
    (lambda c: first(c, image_id=77), r"annotation 100 is of the image 77, which 'images'"),
    (lambda c: first(c, image_id="1"), "annotation 100 is of the image '1', which"),
    (lambda c: first(c, category_id="3"), "has the category_id '3', .* are 7, 3"),
    (lambda c: first(c, iscrowd="0"), "annotation 100 .*iscrowd is '0'; expected 0 or 1"),
    (lambda c: c["annotations"][0].pop("image_id"), r"\(id 100\) has no 'image_id'"),
    (lambda c: c["annotations"][1].pop("id"), "entry 1 of 'annotations' has no 'id'"),
    (lambda c: c["categories"][1].pop("name"), r"entry 1 of 'categories' \(id 3\) has no 'name'"),
    (lambda c: first(c, image_id=[1]), "an entry is not as in COCO's json"),
    (lambda c: first(c, id=101), "the id 101 is twice in 'annotations'"),
    (lambda c: c["images"][1].update(id=0), "the id 0 is twice in 'images'"),
    (lambda c: c["images"][1].update(file_name="p0.png"), "images 0 and 1 are both p0.png"),
    (lambda c: c["images"][1].update(file_name="../a.png"), "file_name of the image 1 leads out"),
    (lambda c: c["images"][1].update(file_name="/a.png"), "file_name of the image 1 leads out"),
    (lambda c: c["images"][1].update(file_name="new.png"), r"1 of 4 images .*such as new\.png"),
    (another_set, r"4 of 4 images .*other0\.jpg, other1\.jpg, other2\.jpg\. .*another set\?"),
    (lambda c: c["images"][1].pop("id"), "entry 1 of 'images' has no 'id'"),
    (lambda c: c["images"][1].update(height="x"), "the size of the image 1 is no number"),
    (lambda c: c.pop("annotations"), "has no list 'annotations'"),
    (lambda c: c.update(images={}), "has no list 'images'"),
]


@pytest.mark.parametrize(("spoil", "said"), FAULTS, ids=[said[:30] for _, said in FAULTS])
def test_a_fault_is_one_line_that_names_the_file_and_the_id(
    tmp_path: Path, spoil: Callable[[Content], Any], said: str
) -> None:
    content = coco(objects(4))
    spoil(content)
    with pytest.raises((ValueError, FileNotFoundError), match=said) as caught:
        read(tmp_path, content)
    assert str(caught.value).startswith(str(tmp_path / "boxes.json"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[1]", "{", "[" * 100_000, "\x00"])
def test_what_is_no_such_json_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"boxes\.json(: cannot be read as json| has no list)"):
        read(tmp_path, text)


def test_boxes_that_reach_beyond_the_image_are_clipped_and_counted(tmp_path: Path) -> None:
    content = coco(objects(4))
    content["annotations"][0]["bbox"] = [-3, 4, 20, 30]
    content["annotations"][1]["bbox"] = [1, 4, 20, 20.0001]  # rounding is nothing to report
    pictures = read(tmp_path, content).pictures
    assert pictures[1].boxes.corners.tolist() == [[0, 4, 17, 24]]
    assert [picture.boxes.outside for picture in pictures] == [0, 1, 0, 0]


def test_boxes_without_area_are_left_out_and_named(tmp_path: Path) -> None:
    content = coco(objects(4))
    content["annotations"][1]["bbox"][2] = 0
    boxes = read(tmp_path, content).pictures[2].boxes
    assert boxes.labels.tolist() == [1]
    assert boxes.without_area == (
        f"{tmp_path}/boxes.json: the annotation 101 of the image 2 (p2.png)",
    )


def test_a_file_without_sizes_takes_those_of_the_images(tmp_path: Path) -> None:
    content = coco(objects(4))
    for image in content["images"]:
        del image["height"]
    assert {picture.boxes.size for picture in read(tmp_path, content).pictures} == {(24, 40)}
