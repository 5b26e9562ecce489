"""One quantity of an adapter, measured at each of its places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["OUTSIDE", "Place", "Quantity", "Spectrum"]

#: Block and site: ("3", "qkv"), or (OUTSIDE, "norm") for what is in no block.
Place = tuple[str, str]
OUTSIDE = "–"


@dataclass(frozen=True)
class Quantity:
    """A number for each place."""

    name: str  # short, for columns and keys
    title: str  # for a picture; a few words
    definition: str  # what exactly was measured
    values: Mapping[Place, float | None]  # in forward order; None: nothing finite was measured
    family: str = ""  # quantities of a family share a colour scale; its own name if empty


@dataclass(frozen=True)
class Spectrum:
    """Singular values for each place, the largest first; as `Quantity` otherwise."""

    name: str
    title: str
    definition: str
    values: Mapping[Place, list[float]]
