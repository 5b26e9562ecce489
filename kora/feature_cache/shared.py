"""Features that a run of another task kept of the same images, so that one pass serves both.

A head that reads four levels keeps what a head on the last level reads.

Shapes: n rows, B rows of a block, W numbers a row
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.splits import IntArray
from kora.backbone.vit import Features
from kora.feature_cache.table import Column, Layout, Table

__all__ = ["KeptElsewhere", "kept_elsewhere"]

_AT_ONCE = 256  # rows
#: What an identity says of the reader, and not of images and backbone.
_OF_READER = ("adapter", "inputs", "layers", "levels", "reads")


class KeptElsewhere:
    """A complete table of another reader, and the name there of each column that is needed."""

    def __init__(self, table: Table, layout: Layout, names: Mapping[str, str]) -> None:
        self.table = table
        self.layout = layout
        self.names = names

    def of_rows(self, rows: IntArray) -> Iterator[tuple[IntArray, NDArray[Any]]]:
        """Blocks: row numbers (B,), and these rows (B, W) as `layout` has them."""
        for some in np.array_split(rows, -(-len(rows) // _AT_ONCE)):
            kept = self.table.layout.unpack(self.table.read(some.tolist()))
            yield some, self.layout.pack({own: kept[name] for own, name in self.names.items()})


def kept_elsewhere(folder: Path, of: Mapping[str, Any], layout: Layout) -> KeptElsewhere | None:
    """A whole and undamaged table beside `folder` that holds all columns of `layout`, if any."""
    for about in sorted(folder.parent.glob("*/about.json")):
        if about.parent == folder:
            continue
        try:
            found = json.loads(about.read_text(encoding="utf-8"))
            theirs, told = found["of"], found["layout"]
            if _shared(theirs) != _shared(of) or told["kind"] != layout.kind:
                continue
            columns = tuple(
                Column(c["name"], tuple(c["shape"]), c["dtype"]) for c in told["columns"]
            )
            names = _names(of, layout.columns, theirs, columns)
            if names is None:
                continue
            whole = Layout(told["rows"], columns, told["kind"])
            table = Table(about.parent, theirs, whole).load()
            if not len(table.missing) and not len(table.drop_damaged()):
                return KeptElsewhere(table, layout, names)
        except (OSError, ValueError, TypeError, LookupError):
            continue  # it is not ours to mend
    return None


def _shared(of: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in of.items() if key not in _OF_READER}
    shared: dict[str, Any] = json.loads(json.dumps(plain))
    return shared


def _names(
    of: Mapping[str, Any],
    columns: tuple[Column, ...],
    theirs: Mapping[str, Any],
    their_columns: tuple[Column, ...],
) -> dict[str, str] | None:
    """The name of each column there; None if one is missing, or of another shape or type."""
    there = {column.name: column for column in their_columns}
    names = {}
    for column in columns:
        name = _name(column.name, of, theirs)
        same = None if name is None else there.get(name)
        if name is None or same is None or (same.shape, same.dtype) != (column.shape, column.dtype):
            return None
        names[column.name] = name
    return names


def _name(column: str, of: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """The name of a column in a table of another reader; None if it means something else there."""
    field, _, rest = column.partition(".")
    if field == "levels":
        number, _, part = rest.partition(".")
        block = of["levels"][int(number)]
        known = block in theirs["levels"]
        return f"levels.{theirs['levels'].index(block)}.{part}" if known else None
    if field == "layers":
        return column if of["layers"] == theirs["layers"] else None
    if field in Features._fields:
        return column
    return (
        column if (of["adapter"], of["inputs"]) == (theirs["adapter"], theirs["inputs"]) else None
    )
