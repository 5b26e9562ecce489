"""What strategies answered is counted as the outcomes say, on common seeds."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from kora.compare.answers import Answers, classes_csv, differing_csv
from kora.compare.command import compare
from kora.runs.outcomes import OUTCOMES_NAME
from tests.support.compare_factory import IMAGES, LABELS, five_strategies, run_on_images
from tests.support.comparisons import run

RIGHT = np.ones(IMAGES, dtype=bool)


def wrong_on(*images: int) -> np.ndarray:
    right = RIGHT.copy()
    right[list(images)] = False
    return right


@pytest.fixture
def found(tmp_path: Path) -> Answers:
    """Two seeds each. LoRA is wrong on image 3; the probe on 3, 4, 5, and with seed 1 on 6."""
    runs = [run_on_images(tmp_path, "LoRA", k, wrong_on(3)) for k in (0, 1)]
    runs += [
        run_on_images(tmp_path, "LinearProbe", 0, wrong_on(3, 4, 5)),
        run_on_images(tmp_path, "LinearProbe", 1, wrong_on(3, 4, 5, 6)),
    ]
    answers = compare(runs).answers
    assert answers is not None
    return answers


def test_accuracy_by_class_is_the_mean_over_seeds(found: Answers) -> None:
    assert found.groups == ("LoRA", "LinearProbe")
    by_name = {row.name: row for row in found.classes}
    assert len(by_name) == 10
    assert by_name["kind 6"].images == 10
    assert by_name["kind 6"].shares == pytest.approx({"LoRA": 1.0, "LinearProbe": 0.95})
    assert by_name["kind 3"].shares == pytest.approx({"LoRA": 0.9, "LinearProbe": 0.9})
    assert by_name["kind 6"].spread == pytest.approx(0.05)


def test_confusions_are_shares_of_the_true_class(found: Answers) -> None:
    shares = {(c.truth, c.answer): c.shares for c in found.confusions}
    assert shares["kind 3", "kind 4"] == pytest.approx({"LoRA": 0.1, "LinearProbe": 0.1})
    assert shares["kind 6", "kind 7"] == pytest.approx({"LoRA": 0.0, "LinearProbe": 0.05})
    assert not any(truth == answer for truth, answer in shares)


def test_images_on_which_two_differ_come_with_both_answers_the_clearest_first(
    found: Answers,
) -> None:
    (pair,) = found.pairs
    assert (pair.name, pair.other, pair.seeds) == ("LoRA", "LinearProbe", 2)
    assert (pair.both_wrong, pair.only_right, pair.only_other_right) == (1, 2.5, 0)
    assert pair.both_right == IMAGES - 3.5
    assert [image.index for image in pair.differing] == [4, 5, 6]
    first, _, last = pair.differing
    assert (first.truth, first.answer, first.right) == ("kind 4", "kind 4", 2)
    assert (first.reference_answer, first.reference_right) == ("kind 5", 0)
    assert last.reference_right == 1


def test_what_only_one_has_right_explains_the_difference_of_accuracy(tmp_path: Path) -> None:
    result = compare(five_strategies(tmp_path))
    assert result.answers is not None
    differences = {g.name: g.difference for g in result.groups}
    for pair in result.answers.pairs:
        difference = differences[pair.name]
        assert difference is not None
        gained = (pair.only_right - pair.only_other_right) / IMAGES
        assert gained == pytest.approx(difference.mean)


def test_files_have_every_class_and_every_image(found: Answers) -> None:
    rows = list(csv.DictReader(io.StringIO(classes_csv([("t", found)]))))
    assert len(rows) == 20
    images = list(csv.DictReader(io.StringIO(differing_csv([("t", found)]))))
    assert [row["index"] for row in images] == ["4", "5", "6"]
    assert images[0]["reference_answer"] == "kind 5"


def test_runs_without_outcomes_or_of_other_images_are_left_out(tmp_path: Path) -> None:
    assert compare([run("LoRA", 0, 0.5), run("LinearProbe", 0, 0.4)]).answers is None
    runs = five_strategies(tmp_path, seeds=1)
    (tmp_path / f"runs/fewshot/LoRA/seed0/version_0/{OUTCOMES_NAME}").unlink()
    answers = compare(runs).answers
    assert answers is not None
    assert "LoRA" not in answers.groups
    assert len(answers.pairs) == 3
    assert LABELS.max() == 9
