"""Results of a run for each test image, in one small file, to compare runs image by image.

Shapes: I test images, K classes, D predicted boxes of an image
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kora.runs.durable import DamagedFileError, read_checked, write_atomically

__all__ = [
    "OUTCOMES_NAME",
    "TRUTHS",
    "BoxOutcomes",
    "Outcomes",
    "collect",
    "read_outcomes",
    "write_outcomes",
]

OUTCOMES_NAME = "test_outcomes.safetensors"
_VERSION = "1"
_MOST_CLASSES = 1 << 20  # a list of their names must fit into memory
_AREAS = ("overlap", "predicted", "true")
_BOXES = ("box_score", "box_class", "box_hits", "box_ignored")
_TRUE_BOXES = "box_true"
#: Columns that two models have in common, if they have them at all.
TRUTHS = ("label", "true", _TRUE_BOXES)
_WIDE = {*_AREAS, *_BOXES, _TRUE_BOXES}  # more than a number of each image


@dataclass(frozen=True)
class BoxOutcomes:
    """What each predicted box found; bit 0 is of IoU 0.50, bit 9 of 0.95.

    Images with fewer than D boxes are filled with boxes that are ignored at every threshold.
    """

    score: NDArray[np.float32]  # (I, D)
    classes: NDArray[np.int64]  # (I, D)
    hits: NDArray[np.int64]  # (I, D) bits: it finds a true box of its class
    ignored: NDArray[np.int64]  # (I, D) bits: it counts neither as a hit nor as a mistake
    true: NDArray[np.int64]  # (I, K) number of true boxes of each class

    def __len__(self) -> int:
        return len(self.true)  # images


@dataclass(frozen=True)
class Outcomes:
    """Results of the test images, each image once, sorted by index.

    Args:
        index: (I,) the number of the image in the official split.
        columns: (I,) each: `label` and `prediction` of a classification; of depth, every metric of
            the image by its name, and `pixels`, the number of valid ones. Of segmentation, the
            pixels `overlap`, `predicted` and `true` of each class, (I, K) each. Of detection,
            `box_score`, `box_class`, `box_hits` and `box_ignored` of each predicted box, (I, D)
            each, and `box_true`, (I, K): see `BoxOutcomes`.
    """

    index: NDArray[Any]
    columns: Mapping[str, NDArray[Any]]

    def values(self, metric: str) -> NDArray[np.float64] | None:
        """The value (I,) of each image whose mean is `metric`; None if `metric` is no such mean.

        Accuracy is the mean of 0 (wrong) and 1 (right), a metric of depth the mean of its column.
        """
        stage, _, name = metric.partition("/")
        if stage != "test":
            return None
        if name == "accuracy" and "prediction" in self.columns:
            right = self.columns["label"] == self.columns["prediction"]
            return np.asarray(right, dtype=np.float64)
        if name in self.columns and name not in {"label", "prediction", "pixels"} | _WIDE:
            return np.asarray(self.columns[name], dtype=np.float64)
        return None

    @property
    def areas(self) -> NDArray[np.int64] | None:
        """Pixels (I, 3, K) of overlap, prediction and truth, by class; None without masks."""
        if not set(_AREAS) <= set(self.columns):
            return None
        return np.stack([self.columns[name].astype(np.int64) for name in _AREAS], axis=1)

    @property
    def boxes(self) -> BoxOutcomes | None:
        """What each predicted box found; None without boxes."""
        if not {*_BOXES, _TRUE_BOXES} <= set(self.columns):
            return None
        score, *others = (self.columns[name] for name in (*_BOXES, _TRUE_BOXES))
        return BoxOutcomes(score, *(column.astype(np.int64) for column in others))


def collect(batches: Sequence[Mapping[str, NDArray[Any]]]) -> Outcomes | None:
    """Join batches of columns with an `index`; None if an image has no index.

    An image that occurs twice, because a sampler filled a batch with it, counts once.
    """
    if not batches or any("index" not in batch for batch in batches):
        return None
    columns = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
    index = columns.pop("index")
    if (index < 0).any():
        return None
    index, first = np.unique(index, return_index=True)
    return Outcomes(index, {name: column[first] for name, column in columns.items()})


def write_outcomes(folder: str | Path, outcomes: Outcomes) -> Path:
    """Write the file into the run's folder, atomically and with a checksum; returns its path.

    Whole numbers take the smallest unsigned type that holds them, all others float32.
    """
    from safetensors.numpy import save

    columns = {"index": outcomes.index, **outcomes.columns}
    content = save({k: _compact(v) for k, v in columns.items()}, {"kora_outcomes": _VERSION})
    path = Path(folder) / OUTCOMES_NAME
    return write_atomically(path, lambda target: target.write_bytes(content), checksum=True)


def read_outcomes(folder: str | Path) -> Outcomes | None:
    """The outcomes of a run; None if there are none, as in runs of earlier versions.

    Raises:
        DamagedFileError: the file was changed or cut short, or does not hold what it should.
        ValueError: it was written by another version.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path = Path(folder) / OUTCOMES_NAME
    if not path.is_file():
        return None
    content = read_checked(path)
    try:
        columns = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (SafetensorError, ValueError, KeyError) as error:
        raise DamagedFileError(f"{path} is damaged: not readable ({error}). {_AGAIN}") from error
    version = header.get("__metadata__", {}).get("kora_outcomes")
    if version != _VERSION:
        raise ValueError(
            f"{path}: version is {version!r}, and this KoRA reads {_VERSION!r}. Read it with the "
            "KoRA that wrote it, or test the run again with kora test."
        )
    index = columns.pop("index", np.empty(0))
    classes = [columns[name] for name in ("label", "prediction") if name in columns]
    boxes = {columns[name].shape for name in _BOXES if name in columns}
    if (
        not columns
        or ("label" in columns) != ("prediction" in columns)
        or len(boxes) > 1
        or len({*_BOXES, _TRUE_BOXES} & set(columns)) not in (0, 5)
        or index.ndim != 1
        or any(
            column.shape[:1] != index.shape or (column.ndim > 1) != (name in _WIDE)
            for name, column in columns.items()
        )
        or any(one.dtype.kind != "u" or one.max(initial=0) > _MOST_CLASSES for one in classes)
    ):
        raise DamagedFileError(f"{path} is damaged: its columns do not belong together. {_AGAIN}")
    return Outcomes(index, columns)


_AGAIN = "Test the run again with kora test, or remove the file: the run is compared without it."


def _compact(column: NDArray[Any]) -> NDArray[Any]:
    if np.issubdtype(column.dtype, np.integer):
        smallest = np.min_scalar_type(int(column.max(initial=0)))
        return np.ascontiguousarray(column.astype(smallest))
    return np.ascontiguousarray(column.astype(np.float32))
