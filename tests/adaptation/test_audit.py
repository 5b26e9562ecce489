"""What is found out about pictures by looking at each once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.recipe import ImageRecipe
from kora.adaptation.audit import Audit, look_at
from kora.adaptation.layout import find_pictures
from tests.support.picture_factory import bad_files, scene


def photos(root: Path, each: int = 6) -> Path:
    for label, kind in enumerate("ab"):
        (root / kind).mkdir(parents=True)
        for number in range(each):
            scene(50 * label + number, (90, 120)).save(root / kind / f"{number}.png")
    return root


def looked(root: Path) -> Audit:
    return look_at(find_pictures(root), root.parent / "memory.json")


def together(audit: Audit) -> set[frozenset[str]]:
    """Groups of two or more."""
    members: dict[int, set[str]] = {}
    for row, number in zip(audit.rows, audit.group.tolist(), strict=True):
        members.setdefault(number, set()).add(row.path)
    return {frozenset(group) for group in members.values() if len(group) > 1}


def test_sizes_and_counts_are_told(tmp_path: Path) -> None:
    root = photos(tmp_path / "p")
    scene(9, (30, 200)).save(root / "b" / "wide.png")
    assert looked(root).sentences() == [
        "13 pictures of 2 classes, 6 (a) to 7 (b) each.",
        "Sizes: 30 to 90 pixels high, 120 to 200 wide.",
    ]


def test_pictures_of_one_patient_are_one_group_with_the_twins_of_each(tmp_path: Path) -> None:
    root = photos(tmp_path / "p", each=4)
    shutil.copy(root / "a/0.png", root / "a/copy.png")
    lines = ["path,label,group", "a/copy.png,a,"]
    lines += [f"{k}/{n}.png,{k},{'ann' if n < 2 else ''}" for k in "ab" for n in range(4)]
    (root / "table.csv").write_text("\n".join(lines) + "\n")
    audit = looked(root / "table.csv")
    ann = {f"{k}/{n}.png" for k in "ab" for n in range(2)}
    assert together(audit) == {frozenset({*ann, "a/copy.png"})}
    assert (audit.equal, audit.alike) == (1, 0)


def test_equal_and_nearly_equal_pictures_are_one_group(tmp_path: Path) -> None:
    root = photos(tmp_path / "p")
    shutil.copy(root / "a/0.png", root / "a/copy.png")
    Image.open(root / "a/1.png").save(root / "a/again.jpg", quality=60)
    Image.open(root / "a/2.png").resize((60, 45)).save(root / "a/small.png")
    audit = looked(root)
    assert together(audit) == {
        frozenset({"a/0.png", "a/copy.png"}),
        frozenset({"a/1.png", "a/again.jpg"}),
        frozenset({"a/2.png", "a/small.png"}),
    }
    assert (audit.equal, audit.alike) == (1, 2)
    assert any("1 pictures are copies of others, and 2 nearly so" in s for s in audit.sentences())


def test_a_kind_of_pictures_is_no_group(tmp_path: Path) -> None:
    """Thirty blank pages look alike, and are thirty pictures."""
    root = photos(tmp_path / "p")
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 255, 64)[None, :, None].repeat(64, 0).repeat(3, 2)
    for number in range(30):
        noisy = (ramp + rng.normal(0, 3, ramp.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(root / "b" / f"page{number}.png")
    audit = looked(root)
    assert together(audit) == set()
    (told,) = (one for one in audit.sentences() if "a kind of picture" in one)
    assert told.startswith("30 pictures nearly equal")
    assert "column group" in told


def test_files_that_cannot_be_read_are_left_out_with_the_reason(tmp_path: Path) -> None:
    root = photos(tmp_path / "p")
    bad = bad_files(root / "a")
    audit = looked(root)
    pictures = {f"a/{name}" for name in bad if (root / "a" / name).suffix in (".jpg", ".png")}
    assert pictures
    assert pictures <= set(audit.unreadable)
    assert not {row.path for row in audit.rows} & set(audit.unreadable)
    assert all(audit.unreadable.values())


def test_the_same_picture_in_two_classes_is_left_out_of_both(tmp_path: Path) -> None:
    root = photos(tmp_path / "p")
    shutil.copy(root / "a/0.png", root / "b/other.png")
    audit = looked(root)
    assert audit.contradictory == ["a/0.png", "b/other.png"]
    assert len(audit.rows) == 11
    assert any("2 pictures that are in two classes" in text for text in audit.sentences())


def test_a_class_that_loses_too_many_is_named_with_the_reason(tmp_path: Path) -> None:
    root = photos(tmp_path / "p", each=2)
    (root / "b/1.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"class 'b' .* has 1 pictures .* b/1.png cannot be read"):
        looked(root)


def test_nothing_is_opened_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = photos(tmp_path / "p")
    before = looked(root)
    opened: list[str] = []
    plain = ImageRecipe.open

    def counted(self: ImageRecipe, picture: Path) -> Image.Image:
        opened.append(picture.name)
        return plain(self, picture)

    monkeypatch.setattr(ImageRecipe, "open", counted)
    scene(3, (80, 80)).save(root / "a" / "new.png")
    assert len(looked(root).rows) == len(before.rows) + 1
    assert opened == ["new.png"]
    scene(4, (80, 80)).save(root / "a" / "new.png")
    looked(root)
    assert opened == ["new.png"] * 2, "a file that changed is opened again"


def test_a_damaged_memory_is_no_memory(tmp_path: Path) -> None:
    root = photos(tmp_path / "p")
    found = looked(root).seen
    for text in ("{", "[]", json.dumps({"a/0.png": {"stamp": "x"}})):
        (tmp_path / "memory.json").write_text(text)
        assert looked(root).seen == found
