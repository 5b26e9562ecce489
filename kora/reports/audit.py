"""Audit of a classification: can the labels of its splits support the metrics?

Runs before training, on labels alone: sizes, classes covered, images per class, chance level, and
the scores of always predicting the most frequent training class.

Shapes: n images of a split, K classes
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.table import Column, Table

from kora.console.tables import literal

__all__ = [
    "NO_VALIDATION",
    "TITLES",
    "Audit",
    "Findings",
    "Majority",
    "SplitCoverage",
    "audit",
    "class_table",
    "few_images",
    "some_of",
]

_FEW_IMAGES = 10
_MOST_LISTED = 30  # classes

IntArray = NDArray[np.int64]

NO_VALIDATION = (
    "There is no validation split: no model selection happens, and the last checkpoint is the one "
    "tested."
)
TITLES = {"train": "training", "val": "validation", "test": "test"}
_REQUIRED = ("train", "test")  # validation may be left out: then nothing is selected


@dataclass(frozen=True)
class SplitCoverage:
    """Counts of one split; an absent class counts as 0 in the minimum over all K classes."""

    images: int
    classes: int
    images_per_class_min: int
    images_per_class_max: int


@dataclass(frozen=True)
class Majority:
    """Test scores, in [0, 1], of always predicting the most frequent class of training.

    Ties go to the lowest label. Macro F1 is the mean over the classes that occur among truths or
    predictions, as in torchmetrics.
    """

    label: int
    name: str
    accuracy: float
    macro_f1: float
    weighted_f1: float


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What an audit found: `fatal` stops a run, `problems` too unless allowed, `warnings` never."""

    splits: Mapping[str, Any]  # the statistics of each
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    fatal: tuple[str, ...] = ()

    what: ClassVar[str]  # subject of the audit, in words
    remedies: ClassVar[tuple[str, str]]  # for a fatal finding, and for a problem

    def check(self, allow_degenerate: bool) -> None:
        """Stop an evaluation that cannot support its metrics.

        Raises:
            ValueError: there are fatal findings, or problems that are not allowed.
        """
        if self.fatal:
            raise ValueError(
                f"{self.what} cannot be evaluated:\n{_listed(self.fatal)}\n{self.remedies[0]} "
                "allow_degenerate does not apply here."
            )
        if self.problems and not allow_degenerate:
            raise ValueError(
                f"{self.what} cannot support the metrics:\n{_listed(self.problems)}\n"
                f"{self.remedies[1]} To run it knowingly all the same, set allow_degenerate: true."
            )

    def baselines(self) -> dict[str, dict[str, float]]:
        """Scores without learning that the splits alone tell; others are scored with the model."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """The findings in plain types, ready for JSON."""
        return {
            "splits": {name: found.to_dict() for name, found in self.splits.items()},
            "problems": list(self.problems),
            "warnings": list(self.warnings),
        }

    def render(self) -> Table:
        """The findings for a terminal."""
        raise NotImplementedError(f"{type(self).__name__} has no render.")

    def page(
        self,
        title: str,
        heads: Iterable[str],
        rows: Iterable[Iterable[str]],
        below: Iterable[RenderableType] = (),
    ) -> Table:
        """A table of the splits for a terminal; then `below`, problems and warnings."""
        columns = (Column(head, justify="right") for head in heads)
        table = Table("split", *columns, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        problems = (f"[red]problem:[/red] {literal(text)}" for text in self.problems)
        warnings = (f"[yellow]warning:[/yellow] {literal(text)}" for text in self.warnings)
        page = Table.grid()  # the sentences get the full width, not that of the table
        for part in (table, *below, *problems, *warnings):
            page.add_row(part)
        return page


def few_images(split: str, images: int) -> list[str]:
    """A warning if a split that measures has few images."""
    if split == "train" or images >= _FEW_IMAGES:
        return []
    return [f"The {TITLES[split]} split has only {images} images: its metrics say little."]


def class_table(
    title: str,
    class_names: Sequence[str],
    splits: Iterable[str],
    counts: Sequence[NDArray[Any]],
    texts: Sequence[Sequence[str]],
) -> Table:
    """What each split has of each class, as texts; the class with the most in training first.

    Args:
        title: Of the table.
        class_names: Names of the K classes.
        splits: Names of the splits.
        counts: (K,) of each split.
        texts: These counts in words.
    """
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("class")
    for name in splits:
        table.add_column(TITLES[name], justify="right")
    order = np.argsort(-counts[0], kind="stable") if counts else np.arange(0)
    for k in order[:_MOST_LISTED].tolist():
        table.add_row(literal(class_names[k]), *(of_split[k] for of_split in texts))
    if len(class_names) > _MOST_LISTED:
        table.add_row(f"and {len(class_names) - _MOST_LISTED} more")
    return table


def some_of(mask: Any, names: Sequence[str]) -> str:
    """The first three classes of a mask (K,), and how many more there are."""
    chosen = np.flatnonzero(mask)
    text = ", ".join(f"'{names[k]}'" for k in chosen[:3])
    return text if len(chosen) <= 3 else f"{text} and {len(chosen) - 3} more"


@dataclass(frozen=True, kw_only=True)
class Audit(Findings):
    """What the labels of the splits can and cannot support."""

    num_classes: int
    splits: Mapping[str, SplitCoverage]
    chance: float
    majority: Majority | None  # None when training or test is empty
    left_out: tuple[str, ...] = ()  # metrics that the run does not measure

    what = "The splits"
    remedies = (
        "Check that the data folder is complete, that num_classes fits it, and the settings of the "
        "subset and of validation.",
        "Use a stratified subset (data.subset: {per_class: N}), more validation images, or a test "
        "set read with its own labels.",
    )

    def baselines(self) -> dict[str, dict[str, float]]:
        """Scores without learning, by metric name without stage, for the run record."""
        scores = {"chance": {"accuracy": self.chance}}
        scores["chance"]["top5_accuracy"] = min(5, self.num_classes) / self.num_classes
        if self.majority is not None:
            scores["majority"] = {
                "accuracy": self.majority.accuracy,
                "macro_f1": self.majority.macro_f1,
                "weighted_f1": self.majority.weighted_f1,
            }
        return {
            kind: {name: value for name, value in known.items() if name not in self.left_out}
            for kind, known in scores.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """The findings in plain types, ready for JSON."""
        return {
            "num_classes": self.num_classes,
            "splits": {name: asdict(coverage) for name, coverage in self.splits.items()},
            "chance": self.chance,
            "majority": None if self.majority is None else asdict(self.majority),
            "problems": list(self.problems),
            "warnings": list(self.warnings),
        }

    def render(self) -> Table:
        """A table of the splits, with baselines, problems and warnings below."""
        line = f"chance {self.chance:.2%}"
        if self.majority is not None:
            m = self.majority
            line += (
                f" · always {literal(m.name)}: accuracy {m.accuracy:.2%}, "
                f"macro F1 {m.macro_f1:.2%}, weighted F1 {m.weighted_f1:.2%}"
            )
        rows = []
        for name, split in self.splits.items():
            low, high = split.images_per_class_min, split.images_per_class_max
            each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
            counts = (f"{split.images:,}", f"{split.classes} of {self.num_classes}", each)
            rows.append((TITLES[name], *counts))
        heads = ("images", "classes", "images a class")
        return self.page("Audit of the splits", heads, rows, [line])


def audit(
    splits: Mapping[str, IntArray],
    *,
    num_classes: int,
    class_names: Sequence[str],
    left_out: Sequence[str] = (),
) -> Audit:
    """Examine the labels (n,) of the splits `train`, `val` (may be absent) and `test`.

    A problem that affects only metrics in `left_out` becomes a warning.

    Raises:
        ValueError: the arguments themselves are wrong: fewer than two classes, a number of class
            names other than K, or labels that are not a vector of integers.
    """
    if num_classes < 2:
        raise ValueError(
            f"num_classes is {num_classes}; a classification needs at least 2 classes."
        )
    if len(class_names) != num_classes:
        raise ValueError(
            f"There are {len(class_names)} class names for {num_classes} classes; give one each."
        )
    assert set(splits) <= set(TITLES)
    arrays: dict[str, IntArray] = {}
    for split in TITLES:
        labels = np.asarray(splits.get(split, ()))
        if labels.ndim != 1 or (labels.size and not np.issubdtype(labels.dtype, np.integer)):
            raise ValueError(
                f"Labels of the {TITLES[split]} split have shape {labels.shape} and type "
                f"{labels.dtype}; expected one integer an image, shape (n,)."
            )
        arrays[split] = labels.astype(np.int64)
    fatal = [
        f"The {TITLES[split]} split is empty." for split in _REQUIRED if not len(arrays[split])
    ]
    return _audit_classes(arrays, num_classes, class_names, fatal, tuple(left_out))


def _audit_classes(
    labels: dict[str, IntArray],
    num_classes: int,
    names: Sequence[str],
    fatal: list[str],
    left_out: tuple[str, ...],
) -> Audit:
    """The checks of classes; `fatal` holds the findings of the general checks."""
    counts: dict[str, IntArray] = {}
    for split, values in labels.items():
        inside = (values >= 0) & (values < num_classes)
        if not inside.all():
            at = int(np.flatnonzero(~inside)[0])
            fatal.append(
                f"The {TITLES[split]} split has label {values[at]} at position {at} (and "
                f"{int((~inside).sum())} such in all); labels must lie in 0..{num_classes - 1}."
            )
        counts[split] = np.bincount(values[inside], minlength=num_classes).astype(np.int64)
    present = {split: count > 0 for split, count in counts.items()}
    covered = {split: int(mask.sum()) for split, mask in present.items()}
    problems: list[str] = []
    warnings: list[str] = []

    if 0 < covered["train"] < num_classes:
        problems.append(
            f"Training covers only {covered['train']} of {num_classes} classes; without a training "
            f"image: {some_of(~present['train'], names)}."
        )
    if covered["test"] == 1:
        one = f"The test split holds one class only ({some_of(present['test'], names)}): "
        if {"macro_f1", "weighted_f1"} <= set(left_out):
            warnings.append(f"{one}accuracy is its recall, and F1 is left out.")
        else:
            problems.append(
                f"{one}weighted F1 = 2a/(1+a) there, so it follows from accuracy a and carries no "
                "information beyond it. Leave it out: model.leave_out: [macro_f1, weighted_f1]."
            )
    elif 1 < covered["test"] < num_classes:
        warnings.append(
            f"The test split covers {covered['test']} of {num_classes} classes (not "
            f"{some_of(~present['test'], names)}): its metrics speak only of these."
        )
    unseen = present["test"] & ~present["train"]
    if covered["train"] and unseen.any():
        share = counts["test"][unseen].sum() / counts["test"].sum()
        problems.append(
            f"{int(unseen.sum())} classes of the test split have no training image "
            f"({some_of(unseen, names)}): {share:.1%} of its images cannot be learned."
        )
    images = len(labels["val"])
    if not images:
        warnings.append(NO_VALIDATION)
    elif covered["val"] < num_classes:
        few = images < num_classes
        (warnings if few else problems).append(
            f"Validation ({images} images) lacks {num_classes - covered['val']} of {num_classes} "
            f"classes ({some_of(~present['val'], names)}): the checkpoint is chosen without them."
        )
    return Audit(
        num_classes=num_classes,
        splits={split: _coverage(count) for split, count in counts.items()},
        chance=1 / num_classes,
        majority=_majority(counts["train"], counts["test"], names),
        problems=(*fatal, *problems),
        warnings=tuple(warnings),
        fatal=tuple(fatal),
        left_out=left_out,
    )


def _coverage(counts: IntArray) -> SplitCoverage:
    return SplitCoverage(
        images=int(counts.sum()),
        classes=int((counts > 0).sum()),
        images_per_class_min=int(counts.min()),
        images_per_class_max=int(counts.max()),
    )


def _majority(train: IntArray, test: IntArray, names: Sequence[str]) -> Majority | None:
    """From counts per class (K,). If the class has share p of the test split, F1 is 2p/(1+p)."""
    if not train.any() or not test.any():
        return None
    label = int(train.argmax())
    share = float(test[label] / test.sum())
    f1 = 2 * share / (1 + share)
    occurring = int((test > 0).sum()) + int(test[label] == 0)
    return Majority(
        label=label,
        name=f"'{names[label]}'",
        accuracy=share,
        macro_f1=f1 / occurring,
        weighted_f1=share * f1,
    )


def _listed(sentences: Iterable[str]) -> str:
    """Sentences as a list, one a line."""
    return "\n".join(f"  - {sentence}" for sentence in sentences)
