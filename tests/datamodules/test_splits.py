"""Claims about the choice of training, validation and subset images."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest

from datamodules.splits import (
    Subset,
    allocate,
    check_labels,
    choose_subset,
    choose_train_and_validation,
    choose_validation,
    index_sha256,
)

NAMES = [f"class_{i}" for i in range(4)]
BALANCED = np.repeat(np.arange(4), 25)
SKEWED = np.repeat(np.arange(4), [60, 30, 8, 2])


def subset_of(labels: np.ndarray, seed: int = 0, **options: object) -> np.ndarray:
    return choose_subset(labels, Subset(**options), class_names=NAMES, seed=seed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of per_class and fraction"),
        ({"per_class": 5, "fraction": 0.1}, "exactly one of per_class and fraction"),
        ({"per_class": 0}, "per_class is 0"),
        ({"fraction": 0.0}, r"fraction is 0\.0"),
        ({"fraction": 1.5}, "One per cent is 0.01"),
        ({"per_class": 1, "how": "last"}, "'last'; use stratified, random or first"),
    ],
)
def test_a_subset_that_makes_no_sense_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Subset(**options)


def test_shares_follow_the_largest_remainder() -> None:
    # Exact shares 4.2, 2.1, 0.56, 0.14: the one draw left over goes to the remainder 0.56.
    quota = allocate(7, np.array([60, 30, 8, 2]), np.random.default_rng(0))
    assert quota.tolist() == [4, 2, 1, 0]


def test_ties_between_classes_are_broken_by_the_seed() -> None:
    counts = np.full(4, 25)
    quotas = {tuple(allocate(2, counts, np.random.default_rng(seed))) for seed in range(20)}
    assert len(quotas) > 1
    assert all(sum(quota) == 2 and max(quota) == 1 for quota in quotas)


@pytest.mark.parametrize("labels", [BALANCED, SKEWED])
def test_no_class_is_asked_for_more_than_it_has(labels: np.ndarray) -> None:
    counts = np.bincount(labels)
    for total in range(len(labels) + 1):
        quota = allocate(total, counts, np.random.default_rng(total))
        assert quota.sum() == total
        assert (quota <= counts).all()


def test_per_class_takes_exactly_that_many_of_each() -> None:
    chosen = subset_of(BALANCED, per_class=5)
    assert np.bincount(BALANCED[chosen]).tolist() == [5, 5, 5, 5]
    assert (np.diff(chosen) > 0).all()


def test_a_stratified_fraction_keeps_the_shares() -> None:
    assert np.bincount(SKEWED[subset_of(SKEWED, fraction=0.5)]).tolist() == [30, 15, 4, 1]


def test_a_smaller_subset_lies_within_a_larger_one() -> None:
    assert set(subset_of(BALANCED, per_class=2)) < set(subset_of(BALANCED, per_class=9))


def test_seed_decides_the_subset() -> None:
    assert subset_of(BALANCED, per_class=5).tolist() == subset_of(BALANCED, per_class=5).tolist()
    other = subset_of(BALANCED, seed=1, per_class=5)
    assert subset_of(BALANCED, per_class=5).tolist() != other.tolist()


def test_first_takes_the_start_of_the_list_and_may_leave_classes_out() -> None:
    chosen = subset_of(BALANCED, fraction=0.3, how="first")
    assert chosen.tolist() == list(range(30))
    assert set(BALANCED[chosen]) == {0, 1}
    assert subset_of(BALANCED, per_class=2, how="first").tolist() == list(range(8))


def test_random_ignores_classes_but_not_the_size() -> None:
    counts = np.bincount(BALANCED[subset_of(BALANCED, per_class=5, how="random")])
    assert counts.sum() == 20
    assert len(set(counts)) > 1


@pytest.mark.parametrize("how", ["stratified", "random"])
def test_a_class_missing_from_the_subset_is_named(how: str) -> None:
    with pytest.raises(ValueError, match=r"leaves [12] of 4 classes without .*'class_[23]'"):
        subset_of(SKEWED, fraction=0.05, how=how)


def test_a_class_with_too_few_images_is_named_with_found_and_wanted() -> None:
    with pytest.raises(ValueError, match=r"'class_3' has 2 training images.*asks for 5.*or less"):
        subset_of(SKEWED, per_class=5)
    with pytest.raises(ValueError, match=r"400 images \(100 x 4 classes\).*has 100"):
        subset_of(BALANCED, per_class=100, how="first")


def split(
    labels: np.ndarray, subset: Subset | None = None, **options: object
) -> tuple[np.ndarray, ...]:
    settings = {"val_fraction": 0.2, "val_images": None, "seed": 0, **options}
    return choose_train_and_validation(labels, subset, class_names=NAMES, **settings)


def test_validation_is_stratified_and_training_gets_the_rest() -> None:
    train, val = split(BALANCED)
    assert np.bincount(BALANCED[val]).tolist() == [5, 5, 5, 5]
    assert sorted([*train, *val]) == list(range(100))


def test_val_images_overrides_the_fraction() -> None:
    assert len(split(BALANCED, val_images=7)[1]) == 7
    assert len(split(BALANCED, val_images=0)[1]) == 0


def test_validation_lies_outside_the_subset() -> None:
    train, val = split(BALANCED, Subset(per_class=5), val_images=80)
    assert len(train) == 20
    assert sorted([*train, *val]) == list(range(100))


def test_the_subset_does_not_depend_on_the_validation_size() -> None:
    subset = Subset(per_class=5)
    small, large = split(BALANCED, subset, val_images=4), split(BALANCED, subset, val_images=80)
    assert small[0].tolist() == large[0].tolist()


def test_images_of_other_classes_are_in_no_split() -> None:
    labels = np.where(np.arange(100) % 2, BALANCED, -1)
    for positions in (*split(labels), *split(labels, Subset(per_class=2))):
        assert len(positions)
        assert (labels[positions] >= 0).all()


def test_every_class_keeps_an_image_to_train_on() -> None:
    labels = np.repeat(np.arange(4), [1, 2, 2, 45])
    train, val = split(labels, val_fraction=0.9)
    assert len(val) == 45
    assert np.bincount(labels[train]).tolist() == [1, 1, 1, 2]


def test_more_validation_images_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"asks for 97 images, but 96 of the 100 .* keeps one"):
        split(BALANCED, val_images=97)
    with pytest.raises(ValueError, match=r"asks for 81 images, but 80 .* or a smaller subset"):
        split(BALANCED, Subset(per_class=5), val_images=81)
    with pytest.raises(ValueError, match=r"Use val_images: 0 for no validation, or a smaller sub"):
        split(BALANCED, Subset(fraction=1), val_images=1)


def test_a_fraction_that_comes_to_no_image_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"val_fraction 0.002 of 100 .* less than one image"):
        split(BALANCED, val_fraction=0.002)
    assert len(split(BALANCED, val_fraction=0)[1]) == 0


def test_data_without_classes_gets_a_random_split() -> None:
    val = choose_validation(
        np.zeros(50, dtype=np.int64), None, val_fraction=0.2, val_images=None, seed=0
    )
    assert len(val) == 10
    assert val.tolist() != list(range(10))


def test_the_hash_can_be_computed_by_anyone() -> None:
    expected = hashlib.sha256(struct.pack("<3q", 1, 5, 300)).hexdigest()
    assert index_sha256(np.array([1, 5, 300])) == expected


def test_a_label_out_of_range_and_an_empty_split_are_named() -> None:
    with pytest.raises(RuntimeError, match=r"The train set of X: image 1 has label 7.*0\.\.2"):
        check_labels(np.array([0, 7]), num_classes=3, source="The train set of X")
    for empty in ([], [-1, -1]):
        with pytest.raises(ValueError, match="The test set of X is empty"):
            check_labels(np.array(empty), num_classes=3, source="The test set of X")
