"""Which pictures train, in which fold each validates, and which test; stored in a file.

Shapes: N pictures
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.image_table import TableRow, read_table
from kora.adaptation.audit import Audit
from kora.runs.durable import write_text

__all__ = ["FOLDS", "Split", "split_for"]

FOLDS = 5
#: Share of the pictures of a class that test, if the folder has no test part.
TEST_SHARE = 0.2


class Split(NamedTuple):
    """A split, and the file that keeps it.

    Args:
        file: `split_<n>.csv`; its paths are relative to the folder of the pictures.
        rows: The pictures in use: training with a fold, validation, test.
        made_test: Whether the test part was drawn here.
        notes: For people, one sentence each.
    """

    file: Path
    rows: list[TableRow]
    made_test: bool
    notes: list[str]

    def of(self, part: str) -> list[TableRow]:
        """The rows of a part, in order."""
        return [row for row in self.rows if row.part == part]

    def training(self) -> tuple[list[TableRow], NDArray[np.int64]]:
        """The rows (n,) that train or validate, and the fold in which each validates.

        If the folder has a validation part, that is fold 0, and all others have -1 (never).
        """
        rows = [row for row in self.rows if row.part != "test"]
        if any(row.part == "val" for row in rows):
            return rows, np.array([0 if row.part == "val" else -1 for row in rows])
        return rows, np.array([row.fold for row in rows], dtype=np.int64)


def split_for(audit: Audit, out: Path, *, seed: int) -> Split:
    """Split the pictures; those of an earlier call stay where they were.

    Equal and nearly equal pictures are kept on one side. Without a test part, a fifth of each class
    tests. Training pictures are divided among five folds, by class.

    Raises:
        ValueError: A class would not train, or nothing would validate or test.
    """
    earlier = sorted(out.glob("split_*.csv"), key=lambda path: int(path.stem.split("_")[1]))
    # Pictures that were left out later, as twins of others, stay where they were before that.
    known = {row.path: row for path in earlier for row in read_table(path)}
    before = {row.path for row in read_table(earlier[-1])} if earlier else set()
    made_test = not any(row.part == "test" for row in audit.rows)
    notes: list[str] = []
    groups: dict[int, list[int]] = defaultdict(list)
    for place, number in enumerate(audit.group.tolist()):
        groups[number].append(place)
    order = sorted(groups.values(), key=lambda places: _draw(audit, places, seed))
    part = _parts(audit, order, known, made_test=made_test)
    leaking = [p for p in range(len(audit.rows)) if part[p] == "leak"]
    if leaking:
        or_group = ", or of their group" if any(row.group for row in audit.rows) else ""
        notes.append(
            f"(Nearly) equal to test or validation pictures{or_group}, left out of training: "
            f"{len(leaking)}, such as {audit.rows[leaking[0]].path}."
        )
    folds = _folds(audit, order, part, known)
    rows = [
        row._replace(part=part[p], fold=folds.get(p))
        for p, row in enumerate(audit.rows)
        if part[p] != "leak"
    ]
    _require_parts(rows, notes)
    content = {row.path: seen.sha256 for row, seen in zip(audit.rows, audit.seen, strict=True)}
    text = _as_csv(rows, content)
    new = sum(row.path not in before for row in rows)
    if before:
        gone = len(before - {row.path for row in audit.rows})
        if new or gone:
            notes.append(
                f"Since the last call, {new} pictures came and {gone} went; all others stay in the "
                "part where they were."
            )
        if earlier[-1].read_text(encoding="utf-8") == text:
            return Split(earlier[-1], rows, made_test, notes)
    file = out / f"split_{len(earlier) + 1}.csv"
    write_text(file, text)
    return Split(file, rows, made_test, notes)


def _draw(audit: Audit, places: Sequence[int], seed: int) -> bytes:
    """Sort key of a group in the draw, which does not change when pictures are added."""
    first = min(audit.seen[place].sha256 for place in places)
    return hashlib.sha256(f"{seed} {first}".encode()).digest()


def _parts(
    audit: Audit, order: Sequence[Sequence[int]], before: dict[str, TableRow], *, made_test: bool
) -> list[str]:
    """The part of each picture: train, val, test, or `leak` for a twin on the other side."""
    part = [row.part for row in audit.rows]
    if made_test:
        free = ["" if one == "train" else one for one in part]
        rows = zip(audit.rows, free, strict=True)
        part = [before[row.path].part if row.path in before else one for row, one in rows]
        counts = Counter(row.label for row in audit.rows)
        wanted = {label: max(1, round(TEST_SHARE * count)) for label, count in counts.items()}
        has = Counter(r.label for r, p in zip(audit.rows, part, strict=True) if p == "test")
        kept = dict(counts)  # pictures of a class that do not test
        for label, count in has.items():
            kept[label] -= count
        for places in order:
            known = {part[p] for p in places} & {"train", "val", "test"}
            mine = Counter(audit.rows[p].label for p in places)
            fits = not known and all(
                has[label] + count <= wanted[label] and kept[label] - count >= 1
                for label, count in mine.items()
            )
            side = "test" if fits or known == {"test"} else "train"
            for p in places:
                if not part[p]:
                    part[p] = side
                    if side == "test":
                        has[audit.rows[p].label] += 1
                        kept[audit.rows[p].label] -= 1
        _test_every_class(audit, order, part, has, kept, before)
    part = [p or "train" for p in part]
    for places in order:
        sides = {part[p] for p in places}
        side = "test" if "test" in sides else "val" if "val" in sides else "train"
        for p in places:
            if part[p] != side:
                part[p] = "leak"
    return part


def _require_parts(rows: Sequence[TableRow], notes: Sequence[str]) -> None:
    """Check that something trains in each class, validates and tests.

    Raises:
        ValueError: It does not.
    """
    trained = {row.label for row in rows if row.part == "train"}
    untrained = sorted({row.label for row in rows} - trained)
    fault = ""
    if untrained:
        fault = f"no picture of the class '{untrained[0]}' is left to train"
    elif not any(row.part == "test" for row in rows):
        fault = "no picture can test"
    elif (
        not any(row.part == "val" for row in rows)
        and len({row.fold for row in rows if row.part == "train"}) < 2
    ):
        fault = "no picture can validate"
    if fault:
        why = (
            f"So {fault}. Pictures that are (nearly) equal, or of one group of the table, stay on "
            "one side: add pictures of other scenes, or smaller groups."
        )
        raise ValueError(" ".join([*notes, why]))


def _test_every_class(
    audit: Audit,
    order: Sequence[Sequence[int]],
    part: list[str],
    has: Counter[str],
    kept: dict[str, int],
    before: dict[str, TableRow],
) -> None:
    """Let the smallest group test of a class whose groups are all larger than its share."""
    smallest_first = sorted(order, key=len)
    for label in kept:
        if has[label]:
            continue
        for places in smallest_first:
            mine = Counter(audit.rows[p].label for p in places)
            new = not any(audit.rows[p].path in before or part[p] == "val" for p in places)
            if new and mine[label] and all(kept[one] > count for one, count in mine.items()):
                for p in places:
                    part[p] = "test"
                has.update(mine)
                for one, count in mine.items():
                    kept[one] -= count
                break


def _folds(
    audit: Audit, order: Sequence[Sequence[int]], part: Sequence[str], before: dict[str, TableRow]
) -> dict[int, int]:
    """The fold of each training picture: a group goes to the fold with the fewest of its class.

    Empty if the folder has a validation part.
    """
    if "val" in part:
        return {}
    fold: dict[int, int] = {}
    filled: dict[str, list[int]] = defaultdict(lambda: [0] * FOLDS)
    total = [0] * FOLDS

    def put(place: int, number: int) -> None:
        fold[place] = number
        filled[audit.rows[place].label][number] += 1
        total[number] += 1

    for place, row in enumerate(audit.rows):
        known = before.get(row.path)
        if part[place] == "train" and known is not None and known.fold is not None:
            put(place, known.fold)
    for places in order:
        mine = [p for p in places if part[p] == "train"]
        new = [p for p in mine if p not in fold]
        if not new:
            continue
        there = [fold[p] for p in mine if p in fold]
        counts = filled[audit.rows[new[0]].label]
        number = there[0] if there else min(range(FOLDS), key=lambda n: (counts[n], total[n]))
        for p in new:
            put(p, number)
    return fold


def _as_csv(rows: Sequence[TableRow], content: Mapping[str, str]) -> str:
    """The rows, each with the SHA-256 of its picture: changed pictures make another file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*TableRow._fields, "sha256"])
    for row in rows:
        writer.writerow(["" if value is None else value for value in row] + [content[row.path]])
    return text.getvalue()
