"""Claims about masks: what the values of a file become, and what is refused with its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules.segmentation.masks import MaskError, MaskRecipe, read_colours, require_names


def saved(folder: Path, values: Any, mode: str | None = None) -> Path:
    path = folder / "mask.png"
    image = Image.fromarray(np.asarray(values))
    if mode == "P":
        image = image.convert("P")
        image.putdata(np.asarray(values).ravel().tolist())
        image.putpalette([0, 0, 0, 128, 0, 0] + [9] * 762)
    image.save(path)
    return path


@pytest.mark.parametrize("mode", [None, "P"])
def test_the_values_of_a_grey_or_palette_file_are_its_classes(
    tmp_path: Path, mode: str | None
) -> None:
    values = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    assert np.array_equal(MaskRecipe(3)(saved(tmp_path, values, mode)), values)


def test_another_value_can_be_the_one_that_is_ignored(tmp_path: Path) -> None:
    path = saved(tmp_path, np.array([[0, 1, 11]], dtype=np.uint8))
    assert MaskRecipe(2, ignore_index=11)(path).tolist() == [[0, 1, 255]]


def test_a_reduced_zero_label_is_ignored_and_the_others_move_down(tmp_path: Path) -> None:
    path = saved(tmp_path, np.array([[0, 1, 150, 255]], dtype=np.uint8))
    assert MaskRecipe(150, reduce_zero_label=True)(path).tolist() == [[255, 0, 149, 255]]


def test_colours_become_the_classes_of_their_table(tmp_path: Path) -> None:
    table = tmp_path / "class_dict.csv"
    table.write_text("name,r,g,b\nroad,128,64,128\nsky,70,130,180\n", encoding="utf-8")
    names, colours = read_colours(table)
    assert names == ["road", "sky"]
    rgb = np.array([[[70, 130, 180], [128, 64, 128], [0, 0, 0]]], dtype=np.uint8)
    found = MaskRecipe(2, colours=colours)(saved(tmp_path, rgb))
    assert found.tolist() == [[1, 0, 255]]


@pytest.mark.parametrize("mode", ["P", "L"])
def test_with_colours_a_palette_or_grey_mask_is_read_by_its_colours(
    tmp_path: Path, mode: str
) -> None:
    path = tmp_path / "mask.png"
    if mode == "P":  # 0 is black and 1 is red, and the table begins with red
        image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
        image.putdata([0, 1])
        image.putpalette([0, 0, 0, 200, 0, 0] + [9] * 762)
        image.save(path)
        colours = ((200, 0, 0), (0, 0, 0))
    else:
        Image.fromarray(np.array([[255, 0]], dtype=np.uint8)).save(path)
        colours = ((0, 0, 0), (255, 255, 255))
    assert MaskRecipe(2, colours=colours)(path).tolist() == [[1, 0]]


@pytest.mark.parametrize("kind", ["RGB", "P", "L"])
def test_black_that_is_no_class_is_ignored_in_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    grey = Image.fromarray(np.array([[0, 255, 128]], dtype=np.uint8))
    grey.convert(kind).save(tmp_path / "mask.png")
    colours = ((128, 128, 128), (255, 255, 255))
    assert MaskRecipe(2, colours=colours)(tmp_path / "mask.png").tolist() == [[255, 1, 0]]


def test_values_of_classes_stay_so_beside_a_table_of_other_colours(tmp_path: Path) -> None:
    path = saved(tmp_path, np.array([[0, 1]], dtype=np.uint8))
    assert MaskRecipe(2, colours=((128, 64, 128), (70, 130, 180)))(path).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "has 0 classes; 2 to 254"),
        ([str(n) for n in range(255)], "has 255 classes"),
        (["sky", "sky"], "names the class 'sky' twice"),
    ],
)
def test_names_that_no_mask_can_have_are_refused(names: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        require_names(names, "classes.txt")


@pytest.mark.parametrize(
    ("values", "options", "said"),
    [
        (np.zeros((2, 2, 3), np.uint8), {}, "has colours .* data.colors"),
        (np.full((2, 2), 3, np.uint8), {}, "value 3, and there are 3 classes: expected 0 to 2"),
        (np.full((2, 2), 300, np.uint16), {}, "more than 8 bits"),
        (
            np.full((2, 2, 3), 7, np.uint8),
            {"colours": ((1, 2, 3),)},
            r"colour \(7, 7, 7\), which is in no line",
        ),
        (np.full((2, 2), 255, np.uint8), {"ignore_index": None}, "value 255"),
    ],
)
def test_what_cannot_be_a_mask_is_refused_with_its_file(
    tmp_path: Path, values: Any, options: dict[str, Any], said: str
) -> None:
    path = saved(tmp_path, values)
    with pytest.raises(MaskError, match=said) as caught:
        MaskRecipe(3, **options)(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_image_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(b"nothing")
    with pytest.raises(MaskError, match=r"Cannot read the mask .*mask\.png"):
        MaskRecipe(2)(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("road,128,64", "expected name,r,g,b"),
        ("road,128,64,300", "expected name,r,g,b"),
        ("road,1,2,3\nsky,1,2,3", "repeats a name or a colour"),
    ],
)
def test_a_table_of_colours_with_a_fault_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "colors.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        read_colours(file)


def test_a_program_named_as_a_mask_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter = tmp_path / "bin/gs"
    interpreter.parent.mkdir()
    interpreter.write_text(f"#!/bin/sh\ntouch {tmp_path}/RAN\n")
    interpreter.chmod(0o755)
    monkeypatch.setenv("PATH", f"{interpreter.parent}:/usr/bin:/bin")
    mask = tmp_path / "1.png"
    mask.write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(MaskError, match=r"Cannot read the mask .*1\.png"):
        MaskRecipe(2)(mask)
    assert not (tmp_path / "RAN").exists()
