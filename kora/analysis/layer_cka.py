"""CKA between the layers of several models on the same images: comparisons and their record.

Shapes: L layers of a model, n images of a batch, D width
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kora.analysis.cka import MinibatchCKA, biased_matrix
from kora.console.tables import csv_text

__all__ = ["FEW", "Comparison", "LayerCKA", "Model", "compare_layers"]

#: Images of the biased estimate, recorded next to the unbiased one: a batch of the notebook.
FEW = 32

#: A feature that changes by less than this share of its size is unchanged, up to rounding.
_SAME = 1e-6

Array = NDArray[np.float64]
#: For each model, the features (n, D) of each of its layers.
Batch = Sequence[Sequence[Array]]


@dataclass(frozen=True)
class Model:
    """One of the models that are compared."""

    key: str  # `run`, `run2`, `frozen` or `frozen2`
    label: str  # in tables and pictures
    layers: tuple[str, ...]  # their names
    frozen: str  # key of the frozen backbone of a run; its own key for that backbone itself
    about: dict[str, Any]  # where it comes from, in plain types


@dataclass(frozen=True)
class Comparison:
    """CKA between the layers of two models, or of one model with itself."""

    first: Model  # its layers are the rows
    second: Model  # its layers are the columns
    cka: Array  # (L, L); NaN where a layer is the same for every image
    #: Ends (L,) of the intervals of the diagonal; None if the layers do not correspond.
    low: Array | None
    high: Array | None
    #: The usual biased estimate (L, L) on the first 32 images, for comparison with publications
    #: that use such a batch; None if there were fewer.
    biased: Array | None = None

    @property
    def name(self) -> str:
        """`run_vs_frozen`, or `within_run`."""
        one, two = self.first.key, self.second.key
        return f"within_{one}" if one == two else f"{one}_vs_{two}"

    @property
    def title(self) -> str:
        """The comparison in words."""
        if self.first == self.second:
            return f"within {self.first.label}"
        return f"{self.first.label} against {self.second.label}"

    def to_dict(self) -> dict[str, Any]:
        """Plain types for strict JSON; NaN is null."""
        ends = {"diagonal_low": self.low, "diagonal_high": self.high}
        return {
            "rows": {"model": self.first.key, "layers": list(self.first.layers)},
            "columns": {"model": self.second.key, "layers": list(self.second.layers)},
            "cka": _rows(self.cka),
            f"biased_cka_of_{FEW}_images": None if self.biased is None else _rows(self.biased),
            **{k: None if v is None else [_plain(value) for value in v] for k, v in ends.items()},
        }


@dataclass(frozen=True)
class LayerCKA:
    """All comparisons of some models."""

    models: tuple[Model, ...]
    #: Each model with itself, each run with its frozen backbone, run with run.
    comparisons: tuple[Comparison, ...]
    images: int
    batches: int
    groups: int  # of batches, from which the intervals draw
    #: Of each run, the layers whose features are those of its frozen backbone.
    unchanged: dict[str, tuple[str, ...]]

    def __getitem__(self, name: str) -> Comparison:
        return next(comparison for comparison in self.comparisons if comparison.name == name)

    def remarks(self) -> list[str]:
        """Sentences on what the numbers cannot show by themselves."""
        said = [_of_unchanged(m, self.unchanged[m.key]) for m in self.models if m.key != m.frozen]
        if self.groups < 2:
            said.append("There is one minibatch, so there are no intervals: take more images.")
        elif self.groups < 10:
            said.append(
                f"The intervals rest on {self.groups} minibatches, which is few: take more images "
                "or a smaller --batch_size."
            )
        for comparison in self.comparisons:
            if comparison.low is None:
                said.append(
                    f"{comparison.title}: their layers differ, so there is no diagonal; "
                    f"the matrix is in {comparison.name}."
                )
        if any(np.isnan(comparison.cka).any() for comparison in self.comparisons):
            said.append(
                "– marks a layer whose feature is the same for every image (as the CLS token is "
                "before the first block): CKA is not defined there."
            )
        return [text for text in said if text]

    def to_dict(self) -> dict[str, Any]:
        """Plain types for strict JSON."""
        models = {m.key: {"label": m.label, "frozen": m.frozen, **m.about} for m in self.models}
        return {
            "images": self.images,
            "batches": self.batches,
            "groups_of_batches": self.groups,
            "models": models,
            "unchanged_layers": {key: list(names) for key, names in self.unchanged.items()},
            "comparisons": {c.name: c.to_dict() for c in self.comparisons},
        }

    def to_csv(self) -> str:
        """CSV with a row for each pair of layers, and the interval if there is one."""
        heads = ["comparison", "model", "layer", "other_model", "other_layer", "cka", "low", "high"]
        rows = []
        for c in self.comparisons:
            for row, layer in enumerate(c.first.layers):
                for column, other in enumerate(c.second.layers):
                    ends = ["", ""]
                    if row == column and c.low is not None and c.high is not None:
                        ends = [_text(c.low[row]), _text(c.high[row])]
                    pair = [c.first.label, layer, c.second.label, other]
                    rows.append([c.name, *pair, _text(c.cka[row, column]), *ends])
        return csv_text((dict(zip(heads, row, strict=True)) for row in rows), heads)


def compare_layers(models: Sequence[Model], batches: Iterable[Batch], *, seed: int = 0) -> LayerCKA:
    """CKA within each model, of each run with its frozen backbone, and of run with run.

    Runs come first, then frozen backbones.

    Raises:
        ValueError: As `MinibatchCKA`.
    """
    starts = np.cumsum([0, *(len(model.layers) for model in models)])
    place = {model.key: int(start) for model, start in zip(models, starts, strict=False)}
    sums = MinibatchCKA(int(starts[-1]))
    runs = [number for number, model in enumerate(models) if model.key != model.frozen]
    keys = [model.key for model in models]
    same = {keys[run]: np.ones(len(models[run].layers), dtype=bool) for run in runs}
    few: list[list[Array]] = []
    for batch in batches:
        every = [layer for layers in batch for layer in layers]
        sums.update(every)
        missing = FEW - sum(len(part[0]) for part in few)
        if missing > 0:
            few.append([np.array(layer[:missing]) for layer in every])
        for run in runs:
            frozen = batch[keys.index(models[run].frozen)]
            same[keys[run]] &= [_is_same(*pair) for pair in zip(batch[run], frozen, strict=True)]
    by_key = dict(zip(keys, models, strict=True))
    pairs = [(model, model) for model in models]
    pairs += [(models[run], by_key[models[run].frozen]) for run in runs]
    pairs += [(models[runs[0]], models[other]) for other in runs[1:]]
    matrix = sums.matrix()
    biased = None
    if sum(len(part[0]) for part in few) == FEW:
        biased = biased_matrix([np.concatenate(parts) for parts in zip(*few, strict=True)])
    return LayerCKA(
        models=tuple(models),
        comparisons=tuple(
            _comparison(*pair, sums, (matrix, biased), place, seed) for pair in pairs
        ),
        images=sums.images,
        batches=sums.batches,
        groups=sums.groups,
        unchanged={
            key: tuple(np.asarray(by_key[key].layers)[kept].tolist()) for key, kept in same.items()
        },
    )


def _comparison(
    first: Model,
    second: Model,
    sums: MinibatchCKA,
    matrices: tuple[Array, Array | None],
    place: dict[str, int],
    seed: int,
) -> Comparison:
    rows, columns = (range(place[m.key], place[m.key] + len(m.layers)) for m in (first, second))
    low = high = None
    if first.layers == second.layers:
        low, high = sums.intervals(list(zip(rows, columns, strict=True)), seed=seed)
    cka, biased = (None if m is None else m[np.ix_(rows, columns)] for m in matrices)
    assert cka is not None
    return Comparison(first, second, cka, low, high, biased)


def _is_same(mine: Array, frozen: Array) -> bool:
    if mine.shape != frozen.shape:  # more channels, such as a composition next to the pooled vector
        return False
    return bool(np.abs(mine - frozen).max() <= _SAME * np.abs(frozen).max())


def _of_unchanged(model: Model, unchanged: Sequence[str]) -> str:
    """A remark on layers that the adapter leaves unchanged; "" if there is nothing to say."""
    if set(unchanged) == set(model.layers):
        return (
            f"{model.label} changes no layer, not even the final feature: all features are the "
            "frozen backbone's, and CKA shows nothing about this run."
        )
    if set(model.layers) - set(unchanged) == {"final"}:
        return (
            f"{model.label} changes no block output, as a side network does: only the final "
            "feature, which the head reads, differs from the frozen backbone's. CKA between its "
            "blocks is that of the frozen backbone, whatever the adapter learned."
        )
    return ""


def _rows(matrix: Array) -> list[list[float | None]]:
    return [[_plain(value) for value in row] for row in matrix]


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _text(value: float) -> str:
    return repr(float(value)) if math.isfinite(value) else ""
