"""Splits of NYU Depth V2: the official one, and validation by whole scenes.

Shapes: N images of the official training set, n chosen images
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.base import Part
from datamodules.splits import IntArray, Subset, choose_subset, fewer, validation_size

__all__ = ["SPLITS_URL", "choose_by_scene", "read_official_split"]

SPLITS_URL = "http://horatio.cs.nyu.edu/mit/silberman/indoor_seg_sup/splits.mat"

_KEYS: dict[Part, str] = {"train": "trainNdxs", "test": "testNdxs"}
_SCENE_STREAM = 2  # the streams of datamodules.splits are 0 and 1


def read_official_split(path: Path, *, frames: int, source: Path) -> dict[Part, IntArray]:
    """Frames of the two official parts, counted from 0, ascending, from `splits.mat`.

    The file has MATLAB's old format and counts from 1. `source` has the frames, for messages.

    Raises:
        RuntimeError: the file cannot be read.
        ValueError: it is no split of these frames.
    """
    try:
        import scipy.io  # takes a tenth of a second

        held: dict[str, Any] = scipy.io.loadmat(path)
    except Exception as error:  # damaged bytes can make the parser raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise RuntimeError(
            f"Cannot read the split {path} ({reason}). Expected a file of MATLAB's old format, up "
            "to version 7. Get splits.mat again, or leave data.splits out."
        ) from error
    parts = {part: np.sort(np.ravel(held.get(key, []))) for part, key in _KEYS.items()}
    both = np.concatenate(list(parts.values()))
    if not all(map(len, parts.values())) or not _are_frames(both, frames):
        raise ValueError(
            f"{path} does not split the {frames} frames of {source}. Expected two lists, "
            f"{' and '.join(map(repr, _KEYS.values()))}, of whole numbers in 1..{frames}, each "
            f"once and in one list only. Use the official split ({SPLITS_URL}) with the official "
            "labelled file."
        )
    return {part: numbers.astype(np.int64) - 1 for part, numbers in parts.items()}


def _are_frames(numbers: NDArray[Any], frames: int) -> bool:
    """Whether these are whole numbers in 1..frames, each once."""
    return bool(np.isin(numbers, np.arange(1, frames + 1)).all()) and (
        len(np.unique(numbers)) == len(numbers)
    )


def choose_by_scene(
    scenes: Sequence[str],
    subset: Subset | None,
    *,
    class_names: Sequence[str],
    val_fraction: float,
    val_images: int | None,
    seed: int,
) -> tuple[IntArray, IntArray]:
    """Positions that train and that validate, ascending, with no scene in both.

    Frames of one scene are neighbours in a video, nearly the same picture. The subset is drawn
    first, as for every data set. Scenes that it does not touch then validate, in a seeded order. To
    reach the exact number, the last scene is the smallest that suffices, and only some of its
    frames, evenly spaced, are used. The others of that scene stay out of training too.
    `scenes` is the scene of each image (N,). `val_images` overrides `val_fraction`, a share of N.

    Raises:
        ValueError: as `choose_subset`; or too few images are in scenes that are free to validate,
            or the fraction comes to no image.
    """
    names, scene_N = np.unique(np.asarray(scenes), return_inverse=True)
    counts = np.bincount(scene_N)
    total = validation_size(len(scenes), val_fraction=val_fraction, val_images=val_images)
    order = np.random.default_rng([seed, _SCENE_STREAM]).permutation(len(names))
    if subset is None:
        free = order[:-1]  # one scene is left to train on
        rule = "when one scene is kept to train on"
    else:
        labels = np.zeros(len(scenes), dtype=np.int64)
        taken = choose_subset(labels, subset, class_names=class_names, seed=seed)
        free = order[~np.isin(order, scene_N[taken])]
        rule = "in scenes that the training subset does not touch"
    available = int(counts[free].sum())
    if total > available:
        raise ValueError(
            f"Validation asks for {total} images, but only {available} of the {len(scenes)} "
            f"training images are free for it {rule} (frames of one scene are nearly the same "
            f"picture). {fewer(available, few_shot=subset is not None)}"
        )
    chosen, val = _scenes_for(total, free, counts, scene_N)
    train = np.flatnonzero(~np.isin(scene_N, chosen)) if subset is None else taken
    return train, val


def _scenes_for(
    total: int, free: IntArray, counts: IntArray, scene_N: IntArray
) -> tuple[IntArray, IntArray]:
    """Scenes from the front of `free` with at least `total` images, and `total` of those images."""
    reach = np.cumsum(counts[free])
    whole = int(np.searchsorted(reach, total, side="right"))  # scenes that fit entirely
    chosen = free[:whole]
    val = np.flatnonzero(np.isin(scene_N, chosen))
    missing = total - len(val)
    if missing == 0:
        return chosen, val
    rest = free[whole:]
    rest = rest[counts[rest] >= missing]
    last = rest[counts[rest].argmin()]
    frames = np.flatnonzero(scene_N == last)
    some = frames[np.linspace(0, len(frames) - 1, missing).round().astype(np.int64)]
    return np.append(chosen, last), np.sort(np.concatenate([val, some]))
