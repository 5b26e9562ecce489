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
    """A number for each place.

    Args:
        name: Short, for columns and keys.
        title: For a picture; a few words.
        definition: What exactly was measured.
        values: By place, in forward order; None where nothing finite was measured.
        family: Quantities of one family share a colour scale; its own name if empty.
    """

    name: str
    title: str
    definition: str
    values: Mapping[Place, float | None]
    family: str = ""


@dataclass(frozen=True)
class Spectrum:
    """Singular values for each place, the largest first; as `Quantity` otherwise."""

    name: str
    title: str
    definition: str
    values: Mapping[Place, list[float]]
