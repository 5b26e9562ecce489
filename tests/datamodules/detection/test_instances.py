"""Claims about boxes of instance masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from datamodules.detection.instances import read_instances
from datamodules.detection.layouts import Source
from tests.support.detection import objects, write_images


def source(root: Path, mask: Image.Image) -> Source:
    write_images(root / "images", {"p1": objects(2)["p1"]})
    (root / "instances").mkdir()
    mask.save(root / "instances/p1.png")
    return Source(root / "images", root / "instances")


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_mask_without_folders_of_classes_is_of_one_class(tmp_path: Path, kind: type) -> None:
    values: NDArray[Any] = np.zeros((24, 40), kind)
    values[2:9, 3:5] = 1
    values[4:6, 10:30] = np.iinfo(kind).max
    values[20, 39] = values[22, 30] = 7  # one object in two pieces
    found = read_instances(source(tmp_path, Image.fromarray(values)), ["cell"])
    assert found.names == ["cell"]
    corners = found.pictures[0].boxes.corners.tolist()
    assert corners == [[3, 2, 5, 9], [30, 20, 40, 23], [10, 4, 30, 6]]


def test_a_mask_with_colours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Cannot read the mask .*p1\.png \(mode RGB\)"):
        read_instances(source(tmp_path, Image.new("RGB", (40, 24))), None)


def test_a_mask_without_an_image_is_refused(tmp_path: Path) -> None:
    files = source(tmp_path, Image.new("L", (40, 24), 1))
    (tmp_path / "images/p1.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 1 images are not in"):
        read_instances(files, None)


def test_an_image_without_a_mask_is_one_without_objects(tmp_path: Path) -> None:
    files = source(tmp_path, Image.new("L", (40, 24), 1))
    Image.new("RGB", (30, 20)).save(tmp_path / "images/empty.png")
    first, second = read_instances(files, None).pictures
    assert (first.name, len(first.boxes.labels)) == ("p1.png", 1)
    assert (second.name, len(second.boxes.labels)) == ("empty.png", 0)
    assert second.boxes.size == (20, 30)


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    files = source(tmp_path, Image.new("L", (40, 24), 1))
    Image.new("RGB", (40, 24)).save(tmp_path / "images/p1.bmp")
    with pytest.raises(ValueError, match=r"p1\.\w+ and .*p1\.\w+ have one name"):
        read_instances(files, None)
