"""Accuracy by class, confusions, and the images on which two strategies differ.

Computed from the recorded outcomes of each test image. Shapes: S seeds, I images, K classes
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kora.console.tables import csv_text
from kora.runs.outcomes import TRUTHS, Outcomes
from kora.runs.results import Run

__all__ = [
    "Answers",
    "ClassRow",
    "Confusion",
    "Differing",
    "Pair",
    "answers_of",
    "classes_csv",
    "differing_csv",
    "same_images",
]

Ints = NDArray[np.int64]
_CONFUSIONS = 8  # the most frequent of each strategy


@dataclass(frozen=True)
class ClassRow:
    """A class, its number of test images, and the share that each group got right."""

    name: str
    images: int
    shares: Mapping[str, float]

    @property
    def spread(self) -> float:
        """Difference between the best and the worst group."""
        return max(self.shares.values()) - min(self.shares.values())


@dataclass(frozen=True)
class Confusion:
    """The share of the images of one class that each group predicted as another class."""

    truth: str
    answer: str
    images: int  # of the true class
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Differing:
    """A test image on which two groups differ, with the most frequent answer of each."""

    index: int  # in the official split
    truth: str
    answer: str
    right: int  # number of common seeds that were right
    reference_answer: str
    reference_right: int


@dataclass(frozen=True)
class Pair:
    """Two groups compared image by image; counts are means over their common seeds."""

    name: str
    other: str
    seeds: int
    both_right: float
    only_right: float
    only_other_right: float
    both_wrong: float
    differing: tuple[Differing, ...]  # the clearest first


@dataclass(frozen=True)
class Answers:
    """The answers of all groups whose runs recorded them on the same images."""

    groups: tuple[str, ...]
    classes: tuple[ClassRow, ...]
    confusions: tuple[Confusion, ...]
    pairs: tuple[Pair, ...]
    on_common_seeds: bool  # else each group has its own


def answers_of(
    runs: Mapping[str, Sequence[Run]],
    other: str,
    read: Callable[[Path], Outcomes | None],
) -> Answers | None:
    """The answers of each group; None if no group recorded any.

    Groups without outcomes, or tested on other images than the group `other`, are left out.
    """
    kept: dict[str, dict[int | None, Ints]] = {}
    first: Outcomes | None = None
    for name in [other, *(name for name in runs if name != other)]:
        found: dict[int | None, Ints] = {}
        for run in runs[name]:
            outcomes = _classified(run, read)
            if outcomes is None:
                break
            first = first or outcomes
            if not same_images(first, outcomes):
                break
            found[run.result.seed] = outcomes.columns["prediction"].astype(np.int64)
        else:
            kept[name] = found
    if first is None or not kept:
        return None
    label_I = first.columns["label"].astype(np.int64)
    ordered = {name: kept[name] for name in runs if name in kept}
    common = set.intersection(*(set(each) for each in ordered.values()))
    counted = {
        name: np.stack([p for seed, p in each.items() if seed in common or not common])
        for name, each in ordered.items()
    }
    highest = max(int(p.max(initial=0)) for p in [label_I, *counted.values()])
    names = _class_names([run for same in runs.values() for run in same], highest + 1)
    pairs = [
        _pair(name, other, ordered, label_I, first.index, names)
        for name in ordered
        if name != other and other in ordered
    ]
    return Answers(
        groups=tuple(ordered),
        classes=tuple(_classes(counted, label_I, names)),
        confusions=tuple(_confusions(counted, label_I, names)),
        pairs=tuple(pair for pair in pairs if pair is not None),
        on_common_seeds=bool(common),
    )


def classes_csv(answers: Iterable[tuple[str, Answers]]) -> str:
    """One row per class and group: the share of the class's images that the group got right."""
    rows = [
        {"title": title, "class": row.name, "images": row.images, "group": group, "accuracy": share}
        for title, found in answers
        for row in found.classes
        for group, share in row.shares.items()
    ]
    return csv_text(rows, ["title", "class", "images", "group", "accuracy"])


def differing_csv(answers: Iterable[tuple[str, Answers]]) -> str:
    """One row per image and pair of groups whose answers differ with at least one seed."""
    rows = [
        {"title": title, "group": pair.name, "reference": pair.other, "seeds": pair.seeds}
        | asdict(image)
        for title, found in answers
        for pair in found.pairs
        for image in pair.differing
    ]
    columns = ["title", "group", "reference", "seeds", *(one.name for one in fields(Differing))]
    return csv_text(rows, columns)


def same_images(one: Outcomes, other: Outcomes) -> bool:
    """Whether two runs were tested on the same images with the same truth, as far as it is kept."""
    truths: list[tuple[Any, Any]] = [
        (one.columns.get(name), other.columns.get(name)) for name in TRUTHS
    ]
    return np.array_equal(one.index, other.index) and all(np.array_equal(*two) for two in truths)


def _classified(run: Run, read: Callable[[Path], Outcomes | None]) -> Outcomes | None:
    try:
        outcomes = read(run.folder)
    except (OSError, RuntimeError, ValueError):
        return None  # `with_differences` gives the reason
    if outcomes is None or not {"label", "prediction"} <= set(outcomes.columns):
        return None
    return outcomes if len(outcomes.index) else None


def _class_names(runs: Sequence[Run], count: int) -> list[str]:
    """Class names from an adapter folder, or numbers if there are none."""
    for run in runs:
        try:
            text = (run.folder / "adapter/adapter_config.json").read_text(encoding="utf-8")
            names = json.loads(text).get("class_names")
        except (OSError, ValueError, AttributeError, RecursionError):
            continue
        if isinstance(names, list) and len(names) >= count:
            # "goldfish, Carassius auratus": the first synonym, if no two classes share it
            short = [str(name).partition(",")[0] for name in names]
            return short if len(set(short)) == len(short) else [str(name) for name in names]
    return [f"class {number}" for number in range(count)]


def _classes(
    counted: Mapping[str, Ints], label_I: Ints, names: Sequence[str]
) -> Iterator[ClassRow]:
    for number in np.unique(label_I):
        here = label_I == number
        shares = {group: float((p_SI[:, here] == number).mean()) for group, p_SI in counted.items()}
        yield ClassRow(names[number], int(here.sum()), shares)


def _confusions(
    counted: Mapping[str, Ints], label_I: Ints, names: Sequence[str]
) -> Iterator[Confusion]:
    """The most frequent confusions of each group, with their shares in all groups."""
    size = len(names)
    cells: dict[str, dict[int, float]] = {}
    chosen: set[int] = set()
    for group, p_SI in counted.items():
        flat = (label_I * size + p_SI)[p_SI != label_I]
        places, counts = np.unique(flat, return_counts=True)
        cells[group] = dict(zip(places.tolist(), (counts / len(p_SI)).tolist(), strict=True))
        chosen.update(places[np.argsort(-counts, kind="stable")[:_CONFUSIONS]].tolist())
    images = np.bincount(label_I, minlength=size)
    for at in sorted(chosen, key=lambda at: (-max(c.get(at, 0) for c in cells.values()), at)):
        truth, answer = divmod(at, size)
        shares = {group: each.get(at, 0) / float(images[truth]) for group, each in cells.items()}
        yield Confusion(names[truth], names[answer], int(images[truth]), shares)


def _pair(
    name: str,
    other: str,
    kept: Mapping[str, Mapping[int | None, Ints]],
    label_I: Ints,
    index_I: NDArray[Any],
    names: Sequence[str],
) -> Pair | None:
    seeds = [seed for seed in kept[name] if seed in kept[other]]
    if not seeds:
        return None
    mine_SI = np.stack([kept[name][seed] for seed in seeds])
    theirs_SI = np.stack([kept[other][seed] for seed in seeds])
    right_SI, other_SI = mine_SI == label_I, theirs_SI == label_I
    right_I, other_I = right_SI.sum(axis=0), other_SI.sum(axis=0)
    differ_I = (mine_SI != theirs_SI).sum(axis=0)
    places = np.flatnonzero(differ_I)
    order = np.lexsort((places, -differ_I[places], -np.abs(right_I - other_I)[places]))
    differing = tuple(
        Differing(
            index=int(index_I[at]),
            truth=names[label_I[at]],
            answer=names[_most(mine_SI[:, at])],
            right=int(right_I[at]),
            reference_answer=names[_most(theirs_SI[:, at])],
            reference_right=int(other_I[at]),
        )
        for at in places[order]
    )
    return Pair(
        name,
        other,
        len(seeds),
        both_right=float((right_SI & other_SI).sum(axis=1).mean()),
        only_right=float((right_SI & ~other_SI).sum(axis=1).mean()),
        only_other_right=float((~right_SI & other_SI).sum(axis=1).mean()),
        both_wrong=float((~right_SI & ~other_SI).sum(axis=1).mean()),
        differing=differing,
    )


def _most(answers_S: Ints) -> int:
    """The most frequent answer; the smallest if there is a tie."""
    values, counts = np.unique(answers_S, return_counts=True)
    return int(values[np.argmax(counts)])
