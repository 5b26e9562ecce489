"""Look at the pictures: sizes, unreadable files, equal and nearly equal ones.

Shapes: N pictures, P pixels of a thumbnail
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from stat import S_ISREG

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.groups import group_numbers
from datamodules.image_table import TableRow
from datamodules.recipe import ImageRecipe, UnreadableImageError
from kora.adaptation.layout import Layout
from kora.runs.durable import write_text

__all__ = ["Audit", "Seen", "look_at"]

_SIDE = 16
#: Correlation of two thumbnails from which pictures count as nearly equal: the same photo saved
#: again or resized has more than 0.999, the next frame of a burst about 0.99.
_ALIKE = 0.995
#: Standard deviation, in grey levels, below which a thumbnail says too little.
_FLAT = 4.0
#: Share of all pictures: a larger group is a kind of picture, not a picture with its copies.
_LARGEST_GROUP = 0.02
_AT_ONCE = 512


@dataclass(frozen=True)
class Seen:
    """What was found in a file.

    Args:
        stamp: Size in bytes, and time of change in nanoseconds.
        sha256: Of its content.
        size: Height and width in pixels; None if it cannot be read.
        thumbnail: Grey, 16 x 16, in base64.
        why: Why it cannot be read.
    """

    stamp: tuple[int, int]
    sha256: str = ""
    size: tuple[int, int] | None = None
    thumbnail: str = ""
    why: str = ""


@dataclass(frozen=True)
class Audit:
    """What was found in all pictures.

    Args:
        rows: The pictures in use, in order.
        seen: What was found in each of them.
        group: (N,) the number of each picture's group; equal and nearly equal ones share it.
        unreadable: Reasons, by path.
        contradictory: Paths of equal pictures with different labels, which are left out.
        equal: Number of pictures that equal another, byte for byte.
        alike: Number of further pictures that nearly equal another.
        many: Number of pictures that nearly equal so many others that they count as a kind of
            picture, and are not kept together.
    """

    rows: list[TableRow]
    seen: list[Seen]
    group: NDArray[np.int64]
    unreadable: dict[str, str] = field(default_factory=dict)
    contradictory: list[str] = field(default_factory=list)
    equal: int = 0
    alike: int = 0
    many: int = 0

    def sentences(self) -> list[str]:
        """What to know before training, one sentence each."""
        counts = Counter(row.label for row in self.rows)
        (most, high), (least, low) = counts.most_common()[0], counts.most_common()[-1]
        sides = np.array([seen.size for seen in self.seen])
        (short, tall), (narrow, wide) = (np.quantile(sides[:, k], [0, 1]) for k in (0, 1))
        one = (short, narrow) == (tall, wide)
        found = [
            f"{len(self.rows):,} pictures of {len(counts)} classes, {low} ({least}) to {high} "
            f"({most}) each."
            if low != high
            else f"{len(self.rows):,} pictures of {len(counts)} classes, {low} each.",
            f"Sizes: {tall:.0f} x {wide:.0f} pixels."
            if one
            else f"Sizes: {short:.0f} to {tall:.0f} pixels high, {narrow:.0f} to {wide:.0f} wide.",
        ]
        if high >= 5 * low:
            found.append(
                f"Unbalanced: '{most}' has {high / low:.0f} times as many pictures as '{least}'."
            )
        few = [label for label, count in counts.items() if count < 5]
        if few:
            found.append(
                f"{len(few)} classes have fewer than 5 pictures ({', '.join(sorted(few)[:3])}"
                f"{', ...' * (len(few) > 3)}): results for them are uncertain."
            )
        if self.equal or self.alike:
            found.append(
                f"{self.equal} pictures are copies of others, and {self.alike} nearly so: each "
                "stays on the side of its twin."
            )
        if self.many:
            found.append(
                f"{self.many} pictures nearly equal so many others that they count as a kind of "
                "picture: they are in training and test. If they are frames of one scene, name it "
                "for each in the column group of a CSV of path, label and group."
            )
        if self.contradictory:
            found.append(
                f"Left out: {len(self.contradictory)} pictures that are in two classes "
                f"({', '.join(self.contradictory[:2])})."
            )
        if self.unreadable:
            path, why = next(iter(self.unreadable.items()))
            found.append(
                f"Files that cannot be read, left out: {len(self.unreadable)}. The first, {path}: "
                f"{why}"
            )
        return found


def look_at(
    layout: Layout, memory: Path, *, after_each: Callable[[], object] = lambda: None
) -> Audit:
    """Open every picture; those that `memory` knows unchanged are not opened again.

    Raises:
        ValueError: too few pictures can be read.
    """
    known = _recalled(memory)
    recipe = ImageRecipe()

    def seen_of(row: TableRow) -> Seen:
        path = layout.root / row.path
        before = known.get(row.path)
        try:
            stat = os.stat(path)
            stamp = (stat.st_size, stat.st_mtime_ns)
            if before is not None and before.stamp == stamp:
                return before
            if not S_ISREG(stat.st_mode):  # a pipe could block for ever
                return Seen(stamp, why="it is no file")
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            image = recipe.open(path)
        except UnreadableImageError as error:
            return Seen(stamp, why=str(error).rpartition(" (")[2].partition(")")[0])
        except OSError as error:
            return Seen((0, 0), why=error.strerror or str(error))
        small = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
        text = base64.b64encode(np.asarray(small).tobytes()).decode()
        return Seen(stamp, content, (image.height, image.width), text)

    found: list[Seen] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for seen in pool.map(seen_of, layout.rows):
            found.append(seen)
            after_each()
    table = {row.path: asdict(seen) for row, seen in zip(layout.rows, found, strict=True)}
    write_text(memory, json.dumps(table) + "\n")
    return _judged(layout, found)


def _recalled(memory: Path) -> dict[str, Seen]:
    """What an earlier call found; empty if `memory` cannot be read."""
    known: dict[str, Seen] = {}
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, IndexError):
        for path, told in json.loads(memory.read_text(encoding="utf-8")).items():
            size = told["size"] and (int(told["size"][0]), int(told["size"][1]))
            stamp = (int(told["stamp"][0]), int(told["stamp"][1]))
            if size is None or len(base64.b64decode(told["thumbnail"])) == _SIDE * _SIDE:
                known[path] = Seen(stamp, told["sha256"], size, told["thumbnail"], told["why"])
    return known


def _judged(layout: Layout, found: Sequence[Seen]) -> Audit:
    pairs = list(zip(layout.rows, found, strict=True))
    unreadable = {row.path: seen.why for row, seen in pairs if seen.size is None}
    labels = defaultdict(set)
    for row, seen in pairs:
        labels[seen.sha256].add(row.label)
    two = {content for content, of in labels.items() if len(of) > 1 and content}
    contradictory = [row.path for row, seen in pairs if seen.sha256 in two]
    kept = [(row, seen) for row, seen in pairs if seen.size is not None and seen.sha256 not in two]
    left = Counter(row.label for row, _ in kept)
    for label in layout.labels:
        if left[label] < 2:
            raise ValueError(
                f"The class '{label}' of {layout.root} has {left[label]} pictures that can be "
                f"used; two are the least. {_why_few(label, unreadable, contradictory, layout)}"
            )
    group, equal, alike, many = _groups([seen for _, seen in kept], [row.group for row, _ in kept])
    return Audit(
        [row for row, _ in kept],
        [seen for _, seen in kept],
        group,
        unreadable,
        contradictory,
        equal,
        alike,
        many,
    )


def _why_few(
    label: str, unreadable: dict[str, str], contradictory: Sequence[str], layout: Layout
) -> str:
    for row in layout.rows:
        if row.label == label and row.path in unreadable:
            return f"{row.path} cannot be read: {unreadable[row.path]}."
        if row.label == label and row.path in contradictory:
            return f"{row.path} is in another class, too."
    return "Add pictures, or remove the class."


def _groups(seen: Sequence[Seen], named: Sequence[str]) -> tuple[NDArray[np.int64], int, int, int]:
    """(N,) the group of each picture; how many equal an earlier one; nearly do; are of a kind.

    Pictures that `named` gives one group (a patient, a drive) are in one, too.
    """
    count = len(seen)
    equal_N = np.unique([one.sha256 for one in seen], return_inverse=True)[1]
    thumbs_NP = np.stack(
        [np.frombuffer(base64.b64decode(one.thumbnail), dtype=np.uint8) for one in seen]
    ).astype(np.float32)
    thumbs_NP -= thumbs_NP.mean(axis=1, keepdims=True)
    flat = thumbs_NP.std(axis=1) < _FLAT
    thumbs_NP /= np.maximum(np.linalg.norm(thumbs_NP, axis=1, keepdims=True), 1e-6)
    thumbs_NP[flat] = 0
    pairs = []
    for start in range(0, count, _AT_ONCE):
        block = thumbs_NP[start : start + _AT_ONCE] @ thumbs_NP[start:].T
        pairs.append(np.argwhere(block > _ALIKE) + start)
    alike_N = _connected(np.concatenate(pairs), count)
    crowd = np.bincount(alike_N)[alike_N] > max(10, _LARGEST_GROUP * count)
    alike_N[crowd] = count + np.flatnonzero(crowd)
    group_N = _connected(np.concatenate([_same(equal_N), _same(alike_N)]), count)
    copies = count - len(np.unique(equal_N))
    alike = count - copies - len(np.unique(group_N))
    if any(named):
        pairs_of_names = _same(group_numbers(named))
        group_N = _connected(np.concatenate([_same(group_N), pairs_of_names]), count)
    return group_N, copies, alike, sum(not named[n] for n in np.flatnonzero(crowd).tolist())


def _same(number_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs (N, 2): each picture, and the first one with its number."""
    _, first, place = np.unique(number_N, return_index=True, return_inverse=True)
    return np.stack([np.arange(len(number_N)), first[place]], axis=1)


def _connected(pairs: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """(N,) the component of each of `count` pictures in the graph with these pairs as edges."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(len(pairs), dtype=bool)
    graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    numbers: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return numbers
