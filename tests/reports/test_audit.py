import io
import json
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from kora.reports import audit as module
from kora.reports.audit import Audit

TRAIN = np.repeat(np.arange(4), 5)
TEST = np.repeat(np.arange(4), 3)


def audit(splits: dict[str, Any], *, num_classes: int, **options: Any) -> Audit:
    names = [f"class {number}" for number in range(num_classes)]
    return module.audit(splits, num_classes=num_classes, **{"class_names": names, **options})


def fair(**changes: np.ndarray) -> Audit:
    return audit({"train": TRAIN, "val": np.arange(4), "test": TEST, **changes}, num_classes=4)


def test_a_fair_split_has_no_problem_and_its_sizes_are_counted() -> None:
    result = fair()
    assert result.problems == result.warnings == ()
    assert result.chance == 0.25
    train = result.splits["train"]
    assert (train.images, train.classes) == (20, 4)
    assert (train.images_per_class_min, train.images_per_class_max) == (5, 5)
    result.check(allow_degenerate=False)


@pytest.mark.parametrize("seed", range(3))
def test_majority_scores_equal_those_of_torchmetrics(seed: int) -> None:
    torch = pytest.importorskip("torch")
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

    rng = np.random.default_rng(seed)
    train, test = rng.integers(0, 4, 50), rng.choice(6, 40, p=[0.4, 0.3, 0.1, 0.1, 0.1, 0])
    majority = audit({"train": train, "test": test}, num_classes=6).majority
    assert majority is not None
    assert majority.label == np.bincount(train).argmax()
    truth = torch.from_numpy(test)
    guess = torch.full_like(truth, majority.label)
    for value, reference in (
        (majority.accuracy, multiclass_accuracy(guess, truth, 6, average="micro")),
        (majority.macro_f1, multiclass_f1_score(guess, truth, 6, average="macro")),
        (majority.weighted_f1, multiclass_f1_score(guess, truth, 6, average="weighted")),
    ):
        assert value == pytest.approx(float(reference), abs=1e-6)


def test_majority_class_comes_from_training_not_from_test() -> None:
    majority = fair(train=np.array([0, 1, 2, 3, 3]), test=np.array([0, 0, 0, 3])).majority
    assert majority is not None
    assert (majority.label, majority.accuracy) == (3, 0.25)
    absent = fair(train=np.array([0, 1, 2, 3, 3]), test=np.array([0, 1, 2])).majority
    assert absent is not None
    assert absent.accuracy == absent.macro_f1 == absent.weighted_f1 == 0


def test_the_published_tiny_imagenet_split_is_refused_with_each_cause_named() -> None:
    # First 1000 images in sorted order: 2 of 200 classes; the flat val folder read as one class.
    names = [f"n{k:08d}" for k in range(200)]
    published = {"train": np.repeat([0, 1], 500), "test": np.zeros(10_000, dtype=int)}
    result = audit(published, num_classes=200, class_names=names)
    with pytest.raises(ValueError, match="allow_degenerate: true") as error:
        result.check(allow_degenerate=False)
    text = str(error.value)
    assert "covers only 2 of 200 classes" in text
    assert "'n00000002', 'n00000003', 'n00000004' and 195 more" in text
    assert "2a/(1+a)" in text
    assert "per_class" in text
    result.check(allow_degenerate=True)


def test_f1_may_be_left_out_where_the_test_split_holds_one_class() -> None:
    splits = {"train": TRAIN, "test": np.zeros(9, dtype=int)}
    (problem,) = audit(splits, num_classes=4).problems
    assert "model.leave_out: [macro_f1, weighted_f1]" in problem
    without = audit(splits, num_classes=4, left_out=["macro_f1", "weighted_f1"])
    without.check(allow_degenerate=False)
    assert "accuracy is its recall, and F1 is left out" in without.warnings[0]
    assert set(without.baselines()["majority"]) == {"accuracy"}


def test_test_classes_without_training_image_are_a_problem() -> None:
    (first, second) = fair(train=np.array([0, 1, 2])).problems
    assert "covers only 3 of 4" in first
    assert "class 3" in second
    assert "25.0%" in second


def test_a_test_split_that_lacks_classes_is_a_warning() -> None:
    result = fair(test=np.array([0, 1, 2]))
    assert result.problems == ()
    assert "covers 3 of 4 classes (not 'class 3')" in result.warnings[0]


def test_validation_without_some_classes_stops_only_when_it_could_hold_them_all() -> None:
    large = fair(val=np.array([0, 0, 1, 2]))
    assert "lacks 1 of 4 classes ('class 3')" in large.problems[0]
    small = fair(val=np.array([0, 1]))
    assert small.problems == ()
    assert "lacks 2 of 4" in small.warnings[0]


@pytest.mark.parametrize("splits", [{}, {"val": np.array([], dtype=np.int64)}])
def test_no_validation_is_fine_and_said(splits: dict[str, np.ndarray]) -> None:
    result = audit({"train": TRAIN, "test": TEST, **splits}, num_classes=4)
    result.check(allow_degenerate=False)
    assert "no model selection" in result.warnings[0]


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_split_is_never_allowed(split: str) -> None:
    result = fair(**{split: np.array([], dtype=np.int64)})
    with pytest.raises(ValueError, match=f"{split}.* split is empty"):
        result.check(allow_degenerate=True)
    assert result.majority is None


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_out_of_range_is_never_allowed_and_located(label: int) -> None:
    result = fair(test=np.array([0, 1, label, 3, label]))
    with pytest.raises(ValueError, match=rf"test split has label {label} at position 2 .and 2"):
        result.check(allow_degenerate=True)


@pytest.mark.parametrize(
    ("splits", "options", "match"),
    [
        ({"train": TRAIN}, {"num_classes": 1}, "at least 2"),
        ({"train": TRAIN}, {"num_classes": 4, "class_names": ["a"]}, "1 class names for 4"),
        ({"train": TRAIN * 0.5}, {"num_classes": 4}, "float64"),
        ({"train": TRAIN[None]}, {"num_classes": 4}, r"\(1, 20\)"),
    ],
)
def test_wrong_arguments_are_named(
    splits: dict[str, np.ndarray], options: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        audit(splits, **options)


def test_to_dict_is_plain_and_baselines_are_keyed_by_metric() -> None:
    result = fair()
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()
    assert result.baselines()["chance"] == {"accuracy": 0.25, "top5_accuracy": 1.0}
    assert result.baselines()["majority"]["weighted_f1"] == pytest.approx(0.25 * 0.4)


def test_the_table_shows_splits_baselines_and_problems() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    names = ["[red]", "b", "c", "d"]  # brackets are text, not markup
    result = audit(
        {"train": np.zeros(5, dtype=int), "test": TEST}, num_classes=4, class_names=names
    )
    console.print(result.render())
    text = console.export_text()
    for expected in ("1 of 4", "chance 25.00%", "always '[red]'", "problem: Training covers only"):
        assert expected in text
