"""Which pictures test: by class, twins on one side, and the same in every later call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datamodules.image_table import TableRow, read_table
from kora.adaptation.audit import Audit, Seen
from kora.adaptation.split import FOLDS, Split, split_for


def audit_of(
    counts: dict[str, int], *, part: str = "", twins: list[tuple[str, str]] | None = None
) -> Audit:
    rows = [TableRow(f"{k}/{n}.png", k, part) for k, count in counts.items() for n in range(count)]
    group = np.arange(len(rows))
    at = {row.path: place for place, row in enumerate(rows)}
    for left, right in twins or []:
        group[at[right]] = group[at[left]]
    return Audit(rows, [Seen((1, 1), row.path, (8, 8)) for row in rows], group)


def sides(split: Split) -> dict[str, str]:
    return {row.path: row.part for row in split.rows}


def test_a_fifth_of_each_class_tests_and_the_rest_lies_in_five_folds(tmp_path: Path) -> None:
    split = split_for(audit_of({"a": 20, "b": 51, "c": 5, "d": 2}), tmp_path, seed=0)
    tests = Counter(row.label for row in split.of("test"))
    assert tests == {"a": 4, "b": 10, "c": 1, "d": 1}
    assert split.made_test
    folds = Counter((row.label, row.fold) for row in split.of("train"))
    assert {folds["b", k] for k in range(FOLDS)} <= {8, 9}
    assert [folds["c", k] for k in range(FOLDS)].count(1) == 4
    assert read_table(split.file) == split.rows


def test_the_seed_says_which(tmp_path: Path) -> None:
    counts = {"a": 40, "b": 40}
    one = split_for(audit_of(counts), tmp_path / "1", seed=0)
    assert sides(split_for(audit_of(counts), tmp_path / "2", seed=0)) == sides(one)
    assert sides(split_for(audit_of(counts), tmp_path / "3", seed=1)) != sides(one)


def test_twins_are_on_one_side_and_in_one_fold(tmp_path: Path) -> None:
    twins = [(f"a/{2 * n}.png", f"a/{2 * n + 1}.png") for n in range(20)]
    split = split_for(audit_of({"a": 40, "b": 10}, twins=twins), tmp_path, seed=0)
    of = {row.path: (row.part, row.fold) for row in split.rows}
    assert all(of[left] == of[right] for left, right in twins)
    assert Counter(row.part for row in split.rows if row.label == "a") == {"train": 32, "test": 8}


def test_a_class_in_large_groups_alone_is_tested_on_the_smallest(tmp_path: Path) -> None:
    twins = [("a/0.png", f"a/{n}.png") for n in range(1, 6)]
    twins += [("a/6.png", f"a/{n}.png") for n in range(7, 10)]
    split = split_for(audit_of({"a": 10, "b": 10}, twins=twins), tmp_path, seed=0)
    assert {row.path for row in split.of("test") if row.label == "a"} == {
        f"a/{n}.png" for n in range(6, 10)
    }
    assert Counter(row.label for row in split.of("test"))["b"] == 2


def test_a_training_picture_that_is_nearly_a_test_picture_is_left_out(tmp_path: Path) -> None:
    audit = audit_of({"a": 6, "b": 6}, twins=[("a/0.png", "a/1.png")])
    rows = [row._replace(part="test" if row.path[2] in "05" else "train") for row in audit.rows]
    split = split_for(Audit(rows, audit.seen, audit.group), tmp_path, seed=0)
    assert not split.made_test
    assert "a/1.png" not in sides(split)
    assert sides(split)["a/0.png"] == "test"
    assert split.notes[0].startswith("(Nearly) equal to test or validation pictures, left out of")


def test_a_validation_part_takes_the_place_of_folds(tmp_path: Path) -> None:
    audit = audit_of({"a": 6, "b": 6})
    parts = {"0": "test", "1": "val"}
    rows = [row._replace(part=parts.get(row.path[2], "train")) for row in audit.rows]
    split = split_for(Audit(rows, audit.seen, audit.group), tmp_path, seed=0)
    learning, folds = split.training()
    assert [row.part for row in learning].count("val") == 2
    assert folds.tolist() == [0 if row.part == "val" else -1 for row in learning]
    assert all(row.fold is None for row in split.rows)


@pytest.mark.parametrize("more", [{"a": 31, "b": 20}, {"a": 60, "b": 20, "c": 10}])
def test_pictures_that_come_later_move_nobody(tmp_path: Path, more: dict[str, int]) -> None:
    first = split_for(audit_of({"a": 30, "b": 20}), tmp_path, seed=0)
    again = split_for(audit_of({"a": 30, "b": 20}), tmp_path, seed=0)
    assert again.file == first.file, "nothing new: the same file"
    grown = split_for(audit_of(more), tmp_path, seed=0)
    assert grown.file.name == "split_2.csv"
    assert first.file.is_file(), "runs of the first split still find it"
    before = {row.path: row for row in first.rows}
    assert all(before[row.path] == row for row in grown.rows if row.path in before)
    tests = Counter(row.label for row in grown.of("test"))
    assert all(tests[label] == round(0.2 * count) for label, count in more.items())
    new = sum(more.values()) - 50
    assert f"{new} pictures came and 0 went" in grown.notes[0]


def test_a_late_twin_goes_where_its_twin_is(tmp_path: Path) -> None:
    first = split_for(audit_of({"a": 10, "b": 10}), tmp_path, seed=0)
    tested = next(row.path for row in first.rows if row.part == "test" and row.label == "a")
    learnt = next(row for row in first.rows if row.part == "train" and row.label == "a")
    twins = [(tested, "a/10.png"), (learnt.path, "a/11.png")]
    grown = split_for(audit_of({"a": 12, "b": 10}, twins=twins), tmp_path, seed=0)
    of = {row.path: row for row in grown.rows}
    assert of["a/10.png"].part == "test"
    assert (of["a/11.png"].part, of["a/11.png"].fold) == ("train", learnt.fold)


def with_parts(audit: Audit, part: Callable[[TableRow], str]) -> Audit:
    rows = [row._replace(part=part(row)) for row in audit.rows]
    return Audit(rows, audit.seen, audit.group)


def test_a_late_twin_of_both_sides_leaves_a_training_picture_out_for_good(tmp_path: Path) -> None:
    first = split_for(audit_of({"a": 10, "b": 10}), tmp_path, seed=0)
    test = next(row.path for row in first.of("test") if row.label == "a")
    train = next(row.path for row in first.of("train") if row.label == "a")
    later = audit_of({"a": 11, "b": 10}, twins=[(test, train), (test, "a/10.png")])
    second, third = (split_for(later, tmp_path, seed=0) for _ in range(2))
    assert not {train, "a/10.png"} & sides(second).keys()
    assert sides(third) == sides(second)
    assert third.file == second.file
    gone = split_for(audit_of({"a": 10, "b": 10}), tmp_path, seed=0)
    assert sides(gone) == sides(first)


def test_of_a_training_part_without_a_test_part_a_fifth_tests(tmp_path: Path) -> None:
    split = split_for(audit_of({"a": 20, "b": 40}, part="train"), tmp_path / "1", seed=0)
    assert Counter(row.label for row in split.of("test")) == {"a": 4, "b": 8}
    audit = with_parts(audit_of({"a": 20, "b": 20}), lambda r: "val" if "/1" in r.path else "train")
    split = split_for(audit, tmp_path / "2", seed=0)
    assert all("/1" not in row.path for row in split.of("test"))
    assert Counter(row.label for row in split.of("test")) == {"a": 4, "b": 4}
    assert split_for(audit, tmp_path / "2", seed=0) == split


def test_a_training_picture_that_is_nearly_a_validation_picture_is_left_out(tmp_path: Path) -> None:
    parts = {"0": "test", "1": "val"}
    audit = with_parts(
        audit_of({"a": 6, "b": 6}, twins=[("a/1.png", "a/5.png")]),
        lambda row: parts.get(row.path[2], "train"),
    )
    split = split_for(audit, tmp_path, seed=0)
    assert "a/5.png" not in sides(split)
    assert "or validation pictures, left out of training: 1, such as" in split.notes[0]


def test_changed_pictures_make_another_file(tmp_path: Path) -> None:
    audit = audit_of({"a": 10, "b": 10})
    first = split_for(audit, tmp_path, seed=0)
    assert split_for(audit, tmp_path, seed=0).file == first.file
    seen = [replace(one, sha256=f"other {one.sha256}") for one in audit.seen]
    again = split_for(Audit(audit.rows, seen, audit.group), tmp_path, seed=0)
    assert again.file != first.file
    assert sides(again) == sides(first)


ALL = [f"{k}/{n}.png" for k in "ab" for n in range(8)]


@pytest.mark.parametrize(
    ("group", "said"),
    [
        (ALL, "So no picture can test"),
        ([name for name in ALL if name[2] not in "67"], "So no picture can validate"),
    ],
)
def test_groups_that_leave_nothing_for_a_side_are_told(
    tmp_path: Path, group: list[str], said: str
) -> None:
    audit = audit_of({"a": 8, "b": 8}, twins=[(group[0], name) for name in group[1:]])
    with pytest.raises(ValueError, match=said):
        split_for(audit, tmp_path, seed=0)


def test_a_class_whose_training_pictures_all_test_is_named(tmp_path: Path) -> None:
    audit = audit_of({"a": 8, "b": 8}, twins=[("a/0.png", f"a/{n}.png") for n in range(1, 8)])
    audit = with_parts(audit, lambda row: "test" if "/0" in row.path else "train")
    with pytest.raises(ValueError, match=r"left out.*So no picture of the class 'a' is left"):
        split_for(audit, tmp_path, seed=0)
