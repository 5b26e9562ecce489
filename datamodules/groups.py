"""Images that belong together: frames of one drive or scene, slides of one patient.

Neighbouring frames are nearly the same picture: on both sides of a split, they reward memory.

Shapes: N images of a part
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np

from datamodules.splits import IntArray, choose_test

__all__ = ["check_pattern", "cut_parts", "group_numbers", "groups_of", "warn_of_shared_groups"]

_Image = TypeVar("_Image")


def check_pattern(pattern: str) -> str:
    """A regular expression.

    Raises:
        ValueError: it is none.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"data.groups is {pattern!r}, which is not a regular expression ({error}). The part of "
            "the path up to the first underscore is '([^/_]+)_'."
        ) from error
    return pattern


def groups_of(pattern: str, names: Sequence[str]) -> list[str]:
    """The group (N,) of each image: the first group of the expression, or all that it matches.

    Raises:
        ValueError: it is not found in a name.
    """
    found = []
    for name in names:
        match = re.search(pattern, name)
        group = match and match[min(1, match.re.groups)]
        if group is None:
            raise ValueError(
                f"data.groups: {pattern!r} is not found in {name}. Every image needs a group; "
                "write an expression that each path holds."
            )
        found.append(group)
    return found


def group_numbers(names: Sequence[str]) -> IntArray:
    """(N,) the number of the group of each image; one without a name is alone."""
    unnamed = [name or f"\0{place}" for place, name in enumerate(names)]
    return np.unique(unnamed, return_inverse=True)[1].astype(np.int64)


def cut_parts(
    images: Sequence[_Image], names: Sequence[str], pattern: str | None, *, test_fraction: float
) -> dict[Literal["train", "test"], list[_Image]]:
    """The images of a folder without parts in a training and a test part, the same in every run.

    `names` (N,) are their paths; with a `pattern`, whole groups test.
    """
    groups = np.arange(len(names)) if pattern is None else group_numbers(groups_of(pattern, names))
    test = set(choose_test(groups, test_fraction=test_fraction).tolist())
    return {
        "train": [image for place, image in enumerate(images) if place not in test],
        "test": [image for place, image in enumerate(images) if place in test],
    }


def warn_of_shared_groups(
    train: Sequence[str], others: Sequence[str] | None, kind: str = "test"
) -> None:
    """Warn of test or validation images whose group is in the training part, too."""
    known = set(train)
    shared = [name for name in others or () if name and name in known]
    if shared:
        warnings.warn(
            f"{len(shared)} of {len(others or ())} {kind} images belong to groups of the training "
            f"part (such as {shared[0]!r}), so they reward memory. Take them from other groups.",
            stacklevel=2,
        )
