"""Which images train, validate and test: seeded, stratified choices by position.

The functions work on one integer label per image, without images or files. A data set without
classes passes zeros and gets seeded random splits.

Shapes: N images of the official training set, K classes, n chosen images
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "IntArray",
    "Subset",
    "allocate",
    "check_labels",
    "choose_subset",
    "choose_test",
    "choose_train_and_validation",
    "choose_train_beside",
    "choose_validation",
    "choose_whole_groups",
    "class_counts",
    "fewer",
    "index_sha256",
    "validation_size",
]

IntArray = NDArray[np.int64]
How = Literal["stratified", "random", "first"]

# One random stream per purpose, so that changing the validation size leaves the subset as it was.
_SUBSET_STREAM, _VALIDATION_STREAM = 0, 1
_TEST_SEED = 0  # so that every run has the same test images


@dataclass(frozen=True)
class Subset:
    """A part of the training set; its size is `per_class` images a class or a `fraction` of all.

    Args:
        per_class: images for each class. With `how` random or first the same total,
            per_class x classes, is drawn without looking at the classes.
        fraction: share of the training set, in (0, 1].
        how: `stratified` gives every class its fair share (largest remainder), `random` ignores
            classes, `first` takes the first images in sorted file order. The last is the protocol
            of the published notebook: it can leave classes out, and is there to show that.

    Raises:
        ValueError: not exactly one of `per_class` and `fraction` is given, or it is out of range.
    """

    per_class: int | None = None
    fraction: float | None = None
    how: How = "stratified"

    def __post_init__(self) -> None:
        if (self.per_class is None) == (self.fraction is None):
            raise ValueError(
                f"subset: give exactly one of per_class and fraction, found per_class="
                f"{self.per_class} and fraction={self.fraction}. Example: subset: {{per_class: 5}}"
            )
        if self.per_class is not None and self.per_class < 1:
            raise ValueError(f"subset.per_class is {self.per_class}; it must be at least 1.")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ValueError(
                f"subset.fraction is {self.fraction}; it must lie in (0, 1]. One per cent is 0.01."
            )
        if self.how not in ("stratified", "random", "first"):
            raise ValueError(f"subset.how is {self.how!r}; use stratified, random or first.")


def allocate(total: int, counts: IntArray, rng: np.random.Generator) -> IntArray:
    """Share `total` draws among groups of size `counts` (K,), in proportion; returns (K,).

    Largest-remainder method: floor of the exact share, then one more for the largest remainders,
    with ties broken by `rng` so that they do not always favour the first class.
    """
    assert 0 <= total <= counts.sum(), "more draws than images"
    quota, remainder = np.divmod(total * counts.astype(np.int64), max(int(counts.sum()), 1))
    order = np.lexsort((rng.permutation(len(counts)), -remainder))
    quota[order[: total - int(quota.sum())]] += 1
    return quota


def choose_subset(
    labels: IntArray, subset: Subset, *, class_names: Sequence[str], seed: int
) -> IntArray:
    """Positions (n,) of the subset, ascending, within `labels` (N,) in 0..K-1.

    For one seed, a smaller stratified subset is part of every larger one, if it is drawn with
    `per_class`, or if the classes are equally large. Of unequal ones a larger `fraction` may take
    one image less, as whole images are dealt out by the largest remainder.

    Raises:
        ValueError: a class holds fewer images than `per_class`, or (except for `how: first`)
            would be left without an image.
    """
    num_classes = len(class_names)
    counts = np.bincount(labels, minlength=num_classes)
    rng = np.random.default_rng([seed, _SUBSET_STREAM])
    if subset.per_class is not None:
        total = subset.per_class * num_classes
    else:
        assert subset.fraction is not None
        total = max(1, round(subset.fraction * len(labels)))
    if subset.how != "stratified" and total > len(labels):
        raise ValueError(
            f"subset asks for {total} images ({subset.per_class} x {num_classes} classes), "
            f"but the training set has {len(labels)}. Use a smaller per_class."
        )
    if subset.how == "first":
        return np.arange(total, dtype=np.int64)
    if subset.how == "random":
        chosen: IntArray = np.sort(rng.permutation(len(labels))[:total])
    else:
        order = rng.permutation(len(labels))
        if subset.per_class is not None:
            short = int(counts.argmin())
            if counts[short] < subset.per_class:
                raise ValueError(
                    f"Class {class_names[short]!r} has {counts[short]} training images, but "
                    f"subset.per_class asks for {subset.per_class}. Use per_class: "
                    f"{counts[short]} or less, or add images of this class."
                )
            quota = np.full(num_classes, subset.per_class, dtype=np.int64)
        else:
            quota = allocate(total, counts, rng)
        chosen = _take_per_class(labels, order, quota)

    missing = np.flatnonzero(np.bincount(labels[chosen], minlength=num_classes) == 0)
    if len(missing):
        raise ValueError(
            f"The subset of {total} images leaves {len(missing)} of {num_classes} classes without "
            f"a training image, among them {class_names[int(missing[0])]!r}. "
            "Use subset: {per_class: N} with how: stratified, or a larger fraction."
        )
    return chosen


def choose_validation(
    labels: IntArray,
    taken: IntArray | None,
    *,
    val_fraction: float,
    val_images: int | None,
    seed: int,
) -> IntArray:
    """Validation positions (n,), ascending: stratified over the images that are not `taken`.

    `taken` is the few-shot subset; None if training uses everything that validation leaves.
    `val_images` overrides `val_fraction`, a share of all N images.

    Raises:
        ValueError: fewer images are free than asked for, or the fraction comes to none.
    """
    total = validation_size(len(labels), val_fraction=val_fraction, val_images=val_images)
    rng = np.random.default_rng([seed, _VALIDATION_STREAM])
    order = rng.permutation(len(labels))
    if taken is not None:
        order = order[~np.isin(order, taken)]
    counts = np.bincount(labels[order])
    # Without a subset, every class keeps at least one image to train on.
    free = counts if taken is not None else np.maximum(counts - 1, 0)
    if total > free.sum():
        rule = (
            "outside the training subset"
            if taken is not None
            else "when every class keeps one to train on"
        )
        raise ValueError(
            f"Validation asks for {total} images, but {free.sum()} of the {len(labels)} training "
            f"images are free for it {rule}. {fewer(int(free.sum()), few_shot=taken is not None)}"
        )
    return _take_per_class(labels, order, allocate(total, free, rng))


def choose_whole_groups(
    labels: IntArray,
    groups: IntArray,
    taken: IntArray | None,
    *,
    total: int,
    seed: int,
) -> IntArray:
    """Validation positions (n,), ascending: whole groups, until about `total` images validate.

    A group is taken if that brings the number nearer to `total`, and every class keeps an image to
    train on. No group of a `taken` image (the few-shot subset) validates.

    Args:
        labels: (N,) of the images.
        groups: (N,) the number of the group of each image.
        taken: As in `choose_validation`.
        total: Images that are to validate.
        seed: Of the draw.

    Raises:
        ValueError: no group can validate.
    """
    counts = np.bincount(labels)
    rng = np.random.default_rng([seed, _VALIDATION_STREAM])
    names, starts = np.unique(np.sort(groups), return_index=True)
    members = np.split(np.argsort(groups, kind="stable"), starts[1:])
    free = np.setdiff1d(names, [] if taken is None else groups[taken])
    chosen: list[int] = []
    images = 0
    for group in rng.permutation(free).tolist():
        own = np.bincount(labels[members[np.searchsorted(names, group)]], minlength=len(counts))
        nearer = abs(images + own.sum() - total) < abs(images - total)
        if nearer and (taken is not None or (counts - own)[own > 0].min() >= 1):
            chosen.append(group)
            images += int(own.sum())
            counts = counts - own
    if not chosen and total:
        sizes = np.array([len(some) for some in members])
        raise ValueError(
            f"Validation asks for {total} of {len(labels)} training images in whole groups, and no "
            f"group can validate: there are {len(sizes)} of {sizes.min()} to {sizes.max()} images. "
            "Use another data.val_fraction, smaller groups, or a smaller subset."
        )
    return np.flatnonzero(np.isin(groups, chosen))


def validation_size(images: int, *, val_fraction: float, val_images: int | None) -> int:
    """How many of these images validate.

    Raises:
        ValueError: the fraction comes to no image.
    """
    total = round(val_fraction * images) if val_images is None else val_images
    if total == 0 and val_images is None and val_fraction > 0:
        raise ValueError(
            f"data.val_fraction {val_fraction} of {images} training images is less than one "
            "image. Use a larger val_fraction or val_images, or val_fraction: 0 for no validation."
        )
    return total


def fewer(free: int, *, few_shot: bool) -> str:
    """What to do if only `free` images can validate."""
    less = f"val_images: {free} or less" if free else "val_images: 0 for no validation"
    return f"Use {less}{', or a smaller subset' if few_shot else ''}."


def choose_train_and_validation(
    labels: IntArray,
    subset: Subset | None,
    *,
    class_names: Sequence[str],
    val_fraction: float,
    val_images: int | None,
    seed: int,
    groups: IntArray | None = None,
) -> tuple[IntArray, IntArray]:
    """Positions that train and that validate, ascending, among those with a label >= 0.

    The subset is drawn first, so its images do not depend on how many validate. With `groups`, the
    number (N,) of the group of each image, no group is on both sides.

    Raises:
        ValueError: as `choose_subset`, `choose_validation` and `choose_whole_groups`.
    """
    in_use = np.flatnonzero(labels >= 0)
    labels = labels[in_use]
    taken = None
    if subset is not None:
        taken = choose_subset(labels, subset, class_names=class_names, seed=seed)
    if groups is None:
        val = choose_validation(
            labels, taken, val_fraction=val_fraction, val_images=val_images, seed=seed
        )
    else:
        total = validation_size(len(labels), val_fraction=val_fraction, val_images=val_images)
        val = choose_whole_groups(labels, groups[in_use], taken, total=total, seed=seed)
    train = np.setdiff1d(np.arange(len(labels)), val) if taken is None else taken
    return in_use[train], in_use[val]


def choose_train_beside(
    labels: IntArray, val: IntArray, subset: Subset | None, *, class_names: Sequence[str], seed: int
) -> IntArray:
    """Positions that train, ascending, if the images at `val` validate."""
    rest = labels.copy()
    rest[val] = -1  # not in use
    return choose_train_and_validation(
        rest, subset, class_names=class_names, val_fraction=0, val_images=0, seed=seed
    )[0]


def choose_test(groups: IntArray, *, test_fraction: float) -> IntArray:
    """Positions of the test part of images without parts, ascending; the same in every run.

    Whole groups, given by the number (N,) of the group of each image.

    Raises:
        ValueError: no group can test.
    """
    labels = np.zeros(len(groups), dtype=np.int64)
    total = max(1, round(test_fraction * len(groups)))
    return choose_whole_groups(labels, groups, None, total=total, seed=_TEST_SEED)


def check_labels(labels: IntArray, *, num_classes: int, source: str) -> IntArray:
    """The labels as int64, after a check; -1 marks an image of a class not in use.

    Raises:
        RuntimeError: a label lies outside -1..num_classes - 1.
        ValueError: no image is in use.
    """
    labels = np.asarray(labels, dtype=np.int64)
    bad = np.flatnonzero((labels < -1) | (labels >= num_classes))
    if len(bad):
        raise RuntimeError(
            f"{source}: image {bad[0]} has label {labels[bad[0]]}, but labels must lie in "
            f"0..{num_classes - 1}. The files are damaged or belong to another data set: delete "
            "the data folder and run `kora data prepare` again."
        )
    if not (labels >= 0).any():
        raise ValueError(
            f"{source} is empty: no image of the {num_classes} classes was found. Check that the "
            "data folder is complete; if not, delete it and run `kora data prepare` again."
        )
    return labels


def class_counts(labels: IntArray, *, num_classes: int) -> dict[str, int]:
    """Images, classes that occur, and images a class (min and max over all classes)."""
    counts = np.bincount(labels, minlength=num_classes)
    return {
        "images": int(counts.sum()),
        "classes": int((counts > 0).sum()),
        "images_per_class_min": int(counts.min()),
        "images_per_class_max": int(counts.max()),
    }


def index_sha256(indices: IntArray) -> str:
    """SHA-256 of the positions as little-endian int64, in order."""
    return hashlib.sha256(np.ascontiguousarray(indices, dtype="<i8").tobytes()).hexdigest()


def _take_per_class(labels: IntArray, order: IntArray, quota: IntArray) -> IntArray:
    """The first quota[k] positions of class k in `order`, for every k; ascending."""
    by_class = order[np.argsort(labels[order], kind="stable")]
    sorted_labels = labels[by_class]
    starts = np.searchsorted(sorted_labels, np.arange(len(quota)))
    rank = np.arange(len(by_class)) - starts[sorted_labels]
    chosen: IntArray = np.sort(by_class[rank < quota[sorted_labels]])
    return chosen
